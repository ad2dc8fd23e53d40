"""Streams of a model's text for callers with no event loop."""

from __future__ import annotations

from typing import Any, TypeVar

from .._bridge import LoopGone
from .._streams import (
    BatchStream,
    FinishReason,
    GenerationStream,
    TextChunk,
    TextStream,
    Timing,
    Usage,
)
from ._streams import SyncStream

__all__ = ["SyncBatchStream", "SyncTextStream"]

TextStreamT = TypeVar("TextStreamT", bound=GenerationStream)


class SyncGenerationStream(SyncStream[TextStreamT, TextChunk]):
    """The part that streams of text of one sequence and of several have in common."""

    _kept = "; stream.text has what was delivered"

    @property
    def timing(self) -> Timing | None:
        """Seconds that it took; None until the end."""
        return self._stream.timing

    @property
    def queue_position(self) -> int | None:
        """As `TextStream.queue_position`."""
        return self._stream.queue_position

    @property
    def unread_tokens(self) -> int:
        """How many tokens have been generated that this consumer has not received yet."""
        return self._stream.unread_tokens

    @property
    def output(self) -> Any:
        """The return value of ``generate()``; None until the end, and where it did not return."""
        return self._stream.output

    def _receive_all(self) -> None:
        """Receive the rest of the stream. What it gives is in the stream's ``text``."""
        self._unreturned.clear()
        try:
            self._call(self._stream.read)  # type: ignore[attr-defined]
        except LoopGone:
            for _ in self._rest():
                pass


class SyncTextStream(SyncGenerationStream[TextStream]):
    """A `TextStream` for a ``with`` block and a ``for`` loop. Attributes have the same meaning."""

    def read(self) -> str:
        """Return the rest of the text, once it is complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has what came before.
        """
        start = len(self.text) - sum(map(len, self._unreturned))
        self._receive_all()
        return self.text[start:]

    @property
    def text(self) -> str:
        """All the text delivered so far."""
        return self._stream.text

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens delivered so far."""
        return self._stream.token_ids

    @property
    def textless_end(self) -> TextChunk | None:
        """The tokens after the last chunk, as a chunk without text; None if there are none."""
        return self._stream.textless_end

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ids of the prompt's tokens."""
        return self._stream.prompt_token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None until the end."""
        return self._stream.finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._stream.stop_string

    @property
    def usage(self) -> Usage | None:
        """Numbers of tokens; None until the end."""
        return self._stream.usage

    @property
    def message(self) -> dict[str, Any] | None:
        """The answer as a chat message, with ``parse_response``; None until the end."""
        return self._stream.message

    @property
    def parsed(self) -> Any:
        """What the answer was parsed into, with ``response_format``; None if it was cut."""
        return self._stream.parsed


class SyncBatchStream(SyncGenerationStream[BatchStream]):
    """A `BatchStream` for a ``with`` block and a ``for`` loop. Attributes have the same meaning."""

    def read(self) -> list[str]:
        """Return the rest of each row's text, once all rows are complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has what came before.
        """
        starts = [len(text) for text in self.text]
        for chunk in self._unreturned:
            starts[chunk.row] -= len(chunk)
        self._receive_all()
        return [text[start:] for text, start in zip(self.text, starts, strict=True)]

    def stop(self, row: int | None = None) -> None:
        """Ask one row to end after the current step, or all rows.

        Raises:
            IndexError: there is no such row.
        """
        self._was_stopped = True
        self._stream.stop(row)

    @property
    def text(self) -> list[str]:
        """All the text of each row delivered so far."""
        return self._stream.text

    @property
    def token_ids(self) -> list[list[int]]:
        """The ids of all tokens of each row delivered so far."""
        return self._stream.token_ids

    @property
    def textless_end(self) -> list[TextChunk | None]:
        """The tokens after the last chunk of each row, as a chunk without text."""
        return self._stream.textless_end

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        """The ids of each row's prompt, without padding."""
        return self._stream.prompt_token_ids

    @property
    def finish_reason(self) -> list[FinishReason | None]:
        """Why each row ended; None until all rows have ended."""
        return self._stream.finish_reason

    @property
    def stop_string(self) -> list[str | None]:
        """The stop string that ended each row."""
        return self._stream.stop_string

    @property
    def usage(self) -> list[Usage | None]:
        """Numbers of tokens of each row; None until the end."""
        return self._stream.usage

    @property
    def message(self) -> list[dict[str, Any] | None]:
        """Each row's answer as a chat message, with ``parse_response``; None until the end."""
        return self._stream.message

    @property
    def parsed(self) -> list[Any]:
        """What each row's answer was parsed into; see `SyncTextStream.parsed`."""
        return self._stream.parsed
