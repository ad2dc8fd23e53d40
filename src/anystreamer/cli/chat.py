"""A chat in the terminal: questions from keyboard or pipe, answers as they are generated."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Protocol

from anyio import EndOfStream, move_on_after
from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from .. import TextStream
from .._errors import PromptTooLong, is_kind, message_of
from .chat_backends import ChatBackend
from .chat_commands import Commands, Content, Conversation
from .chat_pictures import Part, read_picture
from .chat_session import ChatSession, open_session
from .terminal import Screen, exit_now, fail, format_stats

__all__ = ["Chat"]

PROMPT = "> "

# How often to redraw an answer (seconds). More often is not easier to read, and too fast for a
# slow terminal.
REDRAW_INTERVAL = 1 / 15

# Control characters. A terminal would obey them, so each is shown as a symbol instead.
CONTROLS = {code: 0x2400 + code for code in range(0x20)}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
HARMLESS = {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
NEUTRAL: dict[int, int | str] = {**CONTROLS, **HARMLESS}

# HTML in an answer is shown as text; rich would leave it out.
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class Chat:
    """A conversation, until the user exits or the questions end."""

    def __init__(
        self,
        chat_backend: ChatBackend,
        *,
        backend: str,
        system: str | None,
        pictures: Sequence[Any] = (),
    ) -> None:
        self._chat_backend = chat_backend
        self._backend = backend
        self._conversation = Conversation(system)
        if pictures:
            chat_backend.check_pictures()
            self._conversation.pictures = [chat_backend.picture_part(each) for each in pictures]
        self._session: ChatSession
        self._console = Console()
        self._screen = Screen()
        self._is_interactive = sys.stdin.isatty() and self._console.is_terminal
        # A terminal that cannot move its cursor gets plain text.
        self._is_plain = not self._is_interactive or self._console.is_dumb_terminal

    def run(self) -> None:
        """Read questions and answer them. Ctrl-C stops an answer, or clears the line."""
        with open_session(self._chat_backend, self._backend) as self._session:
            self._converse()
        self._screen.explain_replacements()

    def _converse(self) -> None:
        if not self._is_interactive:
            for question in _lines():
                self._answer(self._conversation.question(question))
        else:
            keys = "Ctrl-C stops an answer, Ctrl-D exits, /help lists commands."
            self._screen.write(f"{_neutral(self._chat_backend.shown_as)}. {keys}", "dim", end="\n")
            if self._conversation.pictures:
                self._screen.write(self._conversation.shown_pictures(), "dim", end="\n")
            commands = Commands(self._conversation, self._answer, self._picture)
            reader = _Keyboard(self._screen, commands.completions)
            while not commands.has_ended and (typed := reader.read_line()) is not None:
                if typed.startswith("/"):
                    self._run(commands, typed.strip())
                elif question := typed.strip():
                    self._answer(self._conversation.question(question))

    def _picture(self, path: str) -> Part:
        self._chat_backend.check_pictures()
        return self._chat_backend.picture_part(read_picture(path))

    def _run(self, commands: Commands, line: str) -> None:
        try:
            if reply := commands.run(line):
                self._screen.write(reply, "dim", end="\n")
        except (ImportError, ValueError) as exc:
            self._screen.write(_neutral(f"Error: {exc}"), "red", end="\n")

    def _answer(self, question: Content) -> None:
        view: _View = (
            _Plain(self._screen) if self._is_plain else _Formatted(self._console, self._screen)
        )
        with _interruptible(self._console) as interrupt:
            try:
                stream = self._session.call(self._show, question, view, interrupt)
            except Exception as exc:
                message = _neutral(_explained(exc, has_commands=self._is_interactive))
                if not self._is_interactive:
                    fail(message)
                self._screen.write(f"Error: {message}", "red", end="\n")
                if self._conversation.pictures:  # the same error can come again because of them
                    self._screen.write(self._conversation.shown_pictures(), "dim", end="\n")
                return
        if not self._is_interactive:
            if interrupt.came:
                exit_now()
        else:
            self._screen.write(format_stats(stream), "dim", end="\n\n")
        if stream.text:  # chat templates refuse a question without an answer
            self._conversation.add(question, stream.text)

    async def _show(self, question: Content, view: _View, interrupt: _Interrupt) -> TextStream:
        messages, settings = self._conversation.messages_with(question), self._conversation.settings
        with view:
            async with self._session.answer(messages, settings) as stream:
                interrupt.stops(stream)
                with suppress(EndOfStream):
                    while True:
                        with move_on_after(view.seconds_to_draw):
                            view.add(_neutral(await stream.receive()))
                        view.draw()
        return stream


def _explained(exc: Exception, *, has_commands: bool) -> str:
    """An error of an answer, in the terms of a chat."""
    message = message_of(exc) or type(exc).__name__
    if is_kind(exc, PromptTooLong):
        least = "at least " if exc.is_lower_bound else ""
        message = (
            f"the conversation has {least}{exc.prompt_tokens} tokens, and the model takes "
            f"{exc.context_length}, its answer included"
        )
    elif getattr(exc, "code", None) != "context_length_exceeded":  # the same error, of a server
        return message
    return f"{message}: start a new one with /new" if has_commands else message


# -- questions


class _Keyboard:
    """Reads lines. Ctrl-C clears the line that is being typed, and leaves if pressed twice.

    Args:
        screen: shows what Ctrl-C does.
        completions: returns the lines that a text can be completed to.
    """

    def __init__(self, screen: Screen, completions: Callable[[str], list[str]]) -> None:
        self._screen = screen
        self._was_interrupted = False  # and nothing was typed since
        with suppress(ImportError):  # it is missing on Windows
            import readline  # gives input() a history and line editing

            readline.set_completer_delims("")  # a line is completed as a whole
            readline.set_completer(_completer(completions))
            is_libedit = "libedit" in (readline.__doc__ or "")
            readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")

    def read_line(self) -> str | None:
        """A line; None at the end of input, Ctrl-D."""
        while True:
            handler = signal.getsignal(signal.SIGINT)
            try:
                # Ctrl-C has to be an exception here: after exit_now the terminal would stay in
                # readline's mode.
                if handler is exit_now:
                    signal.signal(signal.SIGINT, self._interrupt)
                typed = input(PROMPT)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                if self._was_interrupted:
                    exit_now()
                self._was_interrupted = True
                self._screen.write("\nCtrl-C again leaves.", "dim", end="\n")
            else:
                self._was_interrupted = False
                return typed
            finally:
                signal.signal(signal.SIGINT, handler)

    def _interrupt(self, *_: object) -> None:
        if _line_so_far():  # this Ctrl-C clears the line: a next one does not leave yet
            self._was_interrupted = False
        raise KeyboardInterrupt


def _line_so_far() -> str:
    try:
        import readline
    except ImportError:
        return ""
    return readline.get_line_buffer()


def _completer(completions: Callable[[str], list[str]]) -> Callable[[str, int], str | None]:
    """The function that readline calls at a tab, with 0, 1, ... until it returns None.

    It completes commands. In a question, a tab stays a tab: pasted text can have tabs.
    """

    def complete(text: str, number: int) -> str | None:
        found = completions(text) if text.startswith("/") else [f"{text}\t"]
        return found[number] if number < len(found) else None

    return complete


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if question := line.strip():
            yield question


# -- Ctrl-C


class _Interrupt:
    """Ctrl-C while the model works: the first stops the model, a second one exits at once."""

    def __init__(self, console: Console) -> None:
        self.came = False
        self._console = console
        self._stream: TextStream | None = None

    def stops(self, stream: TextStream) -> None:
        """From now on Ctrl-C stops *stream*. If it came before, this stops the stream at once."""
        self._stream = stream
        if self.came:
            stream.stop()

    def __call__(self, *_: object) -> None:
        if self.came:
            self._console.show_cursor()
            exit_now()
        self.came = True
        if self._stream is not None:
            self._stream.stop()


@contextmanager
def _interruptible(console: Console) -> Iterator[_Interrupt]:
    handler = signal.getsignal(signal.SIGINT)
    interrupt = _Interrupt(console)
    if handler is exit_now:  # not so under nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, handler)


# -- answers


class _View(Protocol):
    """Shows an answer, for as long as its block lasts."""

    @property
    def seconds_to_draw(self) -> float:
        """Seconds until it has to draw again."""

    def add(self, text: str) -> None: ...

    def draw(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...


class _Plain:
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


class _Formatted:
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
        end = _final_length(self._text)
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


def _final_length(text: str) -> int:
    """The length of the blocks of *text* that further text cannot change: all but the last one.

    A line that has not ended can still change its meaning, and join the block before it.
    """
    lines = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in PARSER.parse(lines) if token.level == 0 and token.map]
    if len(starts) < 2:
        return 0
    return sum(len(line) + 1 for line in lines.split("\n")[: starts[-1]])


def _neutral(text: str) -> str:
    return text.translate(NEUTRAL)
