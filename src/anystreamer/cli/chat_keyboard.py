"""Reads the lines of a chat: from the keyboard, with a history and completion, or from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from .terminal import Screen, exit_now

__all__ = ["Keyboard", "completer", "lines_of_pipe"]

PROMPT = "> "


class Keyboard:
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
            readline.set_completer(completer(completions))
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


def completer(completions: Callable[[str], list[str]]) -> Callable[[str, int], str | None]:
    """The function that readline calls at a tab, with 0, 1, ... until it returns None.

    It completes commands. In a question, a tab stays a tab: pasted text can have tabs.
    """

    def complete(text: str, number: int) -> str | None:
        found = completions(text) if text.startswith("/") else [f"{text}\t"]
        return found[number] if number < len(found) else None

    return complete


def lines_of_pipe() -> Iterator[str]:
    """The lines of standard input that are not empty."""
    for line in sys.stdin:
        if question := line.strip():
            yield question
