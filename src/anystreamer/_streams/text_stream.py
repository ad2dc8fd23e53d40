"""What a consumer of generated text holds: the stream, its pieces, and how it ended."""

from __future__ import annotations

from typing import Any

from .._bridge import ThreadStream
from .state import GenerationState
from .types import FinishReason, Row, TextChunk, Timing, Usage

__all__ = ["BatchStream", "GenerationStream", "TextStream"]


class GenerationStream(ThreadStream[TextChunk]):
    """What streams of one sequence and of several have in common."""

    def __init__(self, state: GenerationState) -> None:
        super().__init__(state)
        self._generation = state

    @property
    def timing(self) -> Timing | None:
        """Seconds that it took; None until the end."""
        return self._generation.timing

    @property
    def queue_position(self) -> int | None:
        """How many requests are before it in its engine's queue; None once its turn has come.

        None as well for a stream of no engine.
        """
        ticket = self._generation.ticket
        return None if ticket is None else ticket.position

    @property
    def output(self) -> Any:
        """What ``generate()`` returned; None until the end, and where it did not return."""
        return self._generation.output

    @property
    def _rows(self) -> list[Row]:
        return self._generation.rows


class TextStream(GenerationStream):
    """Generated text, as an `anyio.abc.ObjectReceiveStream` of `TextChunk`, which is a `str`.

    A consumer that lags gets what is ready joined into one piece. What is None until the end is set
    before the end is seen.
    """

    async def read(self) -> str:
        """Return the rest of the text, once it is complete.

        As with iterating: a cancelled scope around the block stops the model at once, one within
        the block only when that is left. What had come until then is in `text`.

        Raises:
            BaseException: what ``generate()`` raised; `text` has what came before.
        """
        return "".join([piece async for piece in self])

    @property
    def text(self) -> str:
        """All the text delivered so far."""
        return self._rows[0].text

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens delivered so far, at the end also of those that have no text."""
        return list(self._rows[0].token_ids)

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ids of the prompt's tokens; empty where it has none (``inputs_embeds``, audio)."""
        return list(self._rows[0].prompt_token_ids)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None until then."""
        return self._rows[0].finish_reason

    @property
    def stop_string(self) -> str | None:
        """Which stop string ended it; None until then, and where none did."""
        return self._rows[0].stop_string

    @property
    def usage(self) -> Usage | None:
        """Numbers of tokens; None until the end."""
        return self._rows[0].usage

    @property
    def message(self) -> dict[str, Any] | None:
        """The answer as a chat message to append to the conversation, with ``parse_response``.

        It has what was said by the end, whatever ended it. Of a value that was cut off or is
        malformed, such as a tool call, it has nothing. None until the end.
        """
        return self._rows[0].message


class BatchStream(GenerationStream):
    """The texts of several sequences, as an `anyio.abc.ObjectReceiveStream` of `TextChunk`.

    The pieces of all rows come in one stream; ``piece.row`` says whose it is. Row ``p * n + k``
    is the k-th of ``num_return_sequences=n`` answers to prompt p. What `TextStream` tells of its
    text, this tells in lists, one entry for each row. A row that has ended says no more, and when
    all have, the model stops.
    """

    async def read(self) -> list[str]:
        """Return the rest of each row's text, once all are complete.

        Raises:
            BaseException: what ``generate()`` raised; `text` has what came before.
        """
        texts: list[list[str]] = [[] for _ in self._rows]
        async for piece in self:
            texts[piece.row].append(piece)
        return ["".join(pieces) for pieces in texts]

    def stop(self, row: int | None = None) -> None:
        """Ask one row to end after the current step, or all of them; safe from anywhere.

        Raises:
            IndexError: there is no such row.
        """
        if row is None:
            super().stop()
        else:
            self._rows[row].stop_requested = True

    @property
    def text(self) -> list[str]:
        """All the text of each row delivered so far."""
        return [row.text for row in self._rows]

    @property
    def token_ids(self) -> list[list[int]]:
        """The ids of all tokens of each row delivered so far."""
        return [list(row.token_ids) for row in self._rows]

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        """The ids of each row's prompt, without padding."""
        return [list(row.prompt_token_ids) for row in self._rows]

    @property
    def finish_reason(self) -> list[FinishReason | None]:
        """Why each row ended; None until all have."""
        return [row.finish_reason for row in self._rows]

    @property
    def stop_string(self) -> list[str | None]:
        """Which stop string ended each row; None where none did."""
        return [row.stop_string for row in self._rows]

    @property
    def usage(self) -> list[Usage | None]:
        """Numbers of tokens of each row; None until the end."""
        return [row.usage for row in self._rows]

    @property
    def message(self) -> list[dict[str, Any] | None]:
        """Each row's answer as a chat message; see `TextStream.message`. None until the end."""
        return [row.message for row in self._rows]
