"""A chat in the terminal: sends questions to the model, shows its answers, and stops at Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from anyio import EndOfStream, move_on_after
from rich.console import Console

from .. import TextStream
from .._errors import PromptTooLong, is_kind, message_of
from .chat_backends import ChatBackend
from .chat_commands import Commands, Content, Conversation
from .chat_keyboard import Keyboard, lines_of_pipe
from .chat_pictures import Part, read_picture
from .chat_session import ChatSession, open_session
from .chat_views import View, neutral, new_view
from .terminal import Screen, exit_now, fail, format_stats

__all__ = ["Chat"]


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
            for question in lines_of_pipe():
                self._answer(self._conversation.question(question))
        else:
            keys = "Ctrl-C stops an answer, Ctrl-D exits, /help lists commands."
            self._screen.write(f"{neutral(self._chat_backend.shown_as)}. {keys}", "dim", end="\n")
            if self._conversation.pictures:
                self._screen.write(self._conversation.shown_pictures(), "dim", end="\n")
            commands = Commands(self._conversation, self._answer, self._picture)
            reader = Keyboard(self._screen, commands.completions)
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
            self._screen.write(neutral(f"Error: {exc}"), "red", end="\n")

    def _answer(self, question: Content) -> None:
        view = new_view(self._console, self._screen, is_plain=self._is_plain)
        with _interruptible(self._console) as interrupt:
            try:
                stream = self._session.call(self._show, question, view, interrupt)
            except Exception as exc:
                message = neutral(_explained(exc, has_commands=self._is_interactive))
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

    async def _show(self, question: Content, view: View, interrupt: _Interrupt) -> TextStream:
        messages, settings = self._conversation.messages_with(question), self._conversation.settings
        with view:
            async with self._session.answer(messages, settings) as stream:
                interrupt.stops(stream)
                with suppress(EndOfStream):
                    while True:
                        with move_on_after(view.seconds_to_draw):
                            view.add(neutral(await stream.receive()))
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
