"""What the commands share to write to a terminal, to handle signals, and to exit."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from .._streams import TextStream

__all__ = ["Screen", "exit_now", "fail", "format_stats", "handling", "pluralized"]


class Screen:
    """Standard output: unchanged text, and escape codes only for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._replaced = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A stream must not fail at a character that the terminal cannot show.
            sys.stdout.reconfigure(errors="replace")

    def write(self, text: str, style: str = "", end: str = "") -> None:
        """Show *text* at once, without wrapping it or reading markup in it."""
        from rich.segment import Segment, Segments
        from rich.style import Style

        self.notice(text)
        segments = Segments([Segment(text, Style.parse(style)), Segment(end)])
        self._console.print(segments, end="", soft_wrap=True)

    def notice(self, text: str) -> None:
        """Remember whether *text* has characters that the terminal cannot show."""
        try:
            text.encode(self._console.encoding)
        except UnicodeEncodeError:
            self._replaced = True

    def explain_replacements(self) -> None:
        """Print what to do about characters that were replaced."""
        if self._replaced:
            print(
                f"Note: ? replaces characters that {self._console.encoding} cannot show. "
                "Use a UTF-8 locale, or set PYTHONIOENCODING=utf-8.",
                file=sys.stderr,
            )


def format_stats(stream: TextStream) -> str:
    """How a generation ended, and how fast it was."""
    usage, timing = stream.usage, stream.timing
    assert timing is not None
    stats = [str(stream.finish_reason)]
    if usage is not None:  # a server sends no usage for an answer that was stopped
        stats.append(pluralized(usage.completion_tokens, "token"))
    if timing.first_token is not None:
        stats.append(f"the first after {timing.first_token * 1e3:.1f} ms")
        if usage is not None and usage.computed_tokens > 1:
            rate = (usage.computed_tokens - 1) / (timing.total - timing.first_token)
            stats.append(f"then {rate:.0f} tokens/s")
    return ", ".join(stats)


def pluralized(number: int, noun: str) -> str:
    """A number with its noun, such as "2 tokens"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def fail(message: str) -> NoReturn:
    """Print an error and exit."""
    print(f"Error: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def handling(
    signals: Sequence[signal.Signals], handler: Callable[[int, object], object]
) -> Iterator[None]:
    """Let *handler* handle these signals in this block."""
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, previous in before.items():
            signal.signal(each, previous)


def exit_now(*_: object) -> NoReturn:
    """Exit at once. With torch loaded, the interpreter's own shutdown can take seconds."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), b"\n")
    finally:
        os._exit(130)
