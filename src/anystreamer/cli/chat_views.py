"""Shows an answer in the terminal while it grows: as plain text, or as formatted Markdown."""

from __future__ import annotations

import math
from time import monotonic
from typing import Protocol

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from .terminal import Screen

__all__ = ["PARSER", "View", "final_length", "neutral", "new_view"]

# How often to redraw an answer (seconds). More often is not easier to read, and too fast for a
# slow terminal.
REDRAW_INTERVAL = 1 / 15

# Control characters, and the symbols that are shown in their place.
CONTROLS = {code: 0x2400 + code for code in range(0x20)}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
HARMLESS = {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
NEUTRAL: dict[int, int | str] = {**CONTROLS, **HARMLESS}

# HTML in an answer is shown as text; rich would leave it out.
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class View(Protocol):
    """Shows an answer, for as long as its block lasts."""

    @property
    def seconds_to_draw(self) -> float:
        """Seconds until it has to draw again."""

    def add(self, text: str) -> None:
        """Take more of the answer."""

    def draw(self) -> None:
        """Draw, if it is time to."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...


def new_view(console: Console, screen: Screen, *, is_plain: bool) -> View:
    """Make a view for one answer: of unchanged text, or of formatted Markdown."""
    return _PlainView(screen) if is_plain else _FormattedView(console, screen)


class _PlainView:
    """Unchanged text."""

    seconds_to_draw = math.inf

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def add(self, text: str) -> None:
        self._screen.write(text)

    def draw(self) -> None:
        """Everything has been drawn already."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._screen.write("\n")


class _FormattedView:
    """Markdown, formatted while it grows.

    A block that further text cannot change is printed once, and then scrolls as any text does. Only
    the last block is redrawn. While it is higher than the terminal, only its last lines are shown.
    So no text is lost, and little flickers.
    """

    def __init__(self, console: Console, screen: Screen) -> None:
        self._console = console
        self._screen = screen
        self._text = ""  # the part that can still change
        self._has_printed = False
        self._drawn_at = -math.inf
        self._is_drawn = True
        self._live = Live(
            _LastLines(Text("...", "dim")), console=console, auto_refresh=False, transient=True
        )

    @property
    def seconds_to_draw(self) -> float:
        if self._is_drawn:
            return math.inf
        return max(0.0, self._drawn_at + REDRAW_INTERVAL - monotonic())

    def add(self, text: str) -> None:
        self._screen.notice(text)
        self._text += text
        self._is_drawn = False

    def draw(self) -> None:
        if self.seconds_to_draw > 0:
            return
        end = final_length(self._text)
        whole, self._text = self._text[:end], self._text[end:]
        if whole:
            block = self._formatted(whole)
            self._has_printed = True
            self._live.update(_LastLines(self._formatted(self._text)))
            self._console.print(block)  # above the live part, which it redraws
        else:
            self._live.update(_LastLines(self._formatted(self._text)), refresh=True)
        self._is_drawn = True
        self._drawn_at = monotonic()

    def __enter__(self) -> None:
        self._live.start(refresh=True)

    def __exit__(self, *_: object) -> None:
        self._live.update(Text(""))
        self._live.stop()
        if self._text.strip():
            self._console.print(self._formatted(self._text))

    def _formatted(self, text: str) -> RenderableType:
        # An empty line separates blocks.
        return Group(Text(""), _Markdown(text)) if self._has_printed else _Markdown(text)


class _Markdown(Markdown):
    """Markdown that keeps line breaks, shows URLs, and shows HTML as text."""

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


class _LastLines:
    """The last lines of a renderable, as many as the terminal can show, above an empty line.

    The terminal echoes typed keys in the empty line, also the ^C of Ctrl-C. The next drawing clears
    it.
    """

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._renderable, options.update(height=None), pad=False)
        for line in lines[-max(1, console.size.height - 2) :]:
            yield from line
            yield Segment.line()
        yield Segment(" ")


def final_length(text: str) -> int:
    """The length of the blocks of *text* that further text cannot change: all but the last one.

    A line that has not ended can still change its meaning, and join the block before it.
    """
    lines = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in PARSER.parse(lines) if token.level == 0 and token.map]
    if len(starts) < 2:
        return 0
    return sum(len(line) + 1 for line in lines.split("\n")[: starts[-1]])


def neutral(text: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return text.translate(NEUTRAL)
