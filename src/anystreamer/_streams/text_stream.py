"""What a consumer of generated text holds: the stream, its pieces, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

from .._bridge import ThreadStream
from .._errors import GenerationTimeout
from .tracing import GenerationSpan
from .types import FinishReason, Row, TextChunk, Timing, Usage

__all__ = ["BatchStream", "GenerationStream", "TextStream"]


class HasPosition(Protocol):
    """A place in a line."""

    @property
    def position(self) -> int | None: ...


class GenerationStream(ThreadStream[TextChunk]):
    """What streams of one sequence and of several have in common."""

    def __init__(self, max_buffer_size: float = math.inf) -> None:
        super().__init__(max_buffer_size)
        self._rows = [Row()]
        self._called_at = perf_counter()
        self._first_token_at: float | None = None
        self._unjoined: dict[int, list[TextChunk]] = {}  # by row: taken, not yet delivered
        self._timing: Timing | None = None
        self._output: Any = None
        self._span: GenerationSpan | None = None
        self._place: HasPosition | None = None  # in the line of an engine
        # Of an engine: told how many tokens there are, the time, and that of the ones before.
        self._meter: Callable[[int, float, float | None], None] | None = None

    @property
    def timing(self) -> Timing | None:
        """Seconds that it took; None until the end."""
        return self._timing

    @property
    def queue_position(self) -> int | None:
        """How many requests are before it in its engine's queue; None once its turn has come.

        None as well for a stream of no engine.
        """
        return None if self._place is None else self._place.position

    @property
    def output(self) -> Any:
        """What ``generate()`` returned; None until the end, and where it did not return."""
        return self._output

    def _is_ready(self) -> bool:
        return bool(self._unjoined) or super()._is_ready()

    def _take(self) -> TextChunk:
        taken = self._unjoined
        if self._buffered == 1 and not taken:  # nothing to join
            chunk = super()._take()
            if self._record_delivery(chunk):
                return chunk
        while self._buffered:
            chunk = super()._take()
            taken.setdefault(chunk.row, []).append(chunk)
        while taken:
            index = next(iter(taken))
            chunks = taken.pop(index)
            row = self._rows[index]
            if row.has_fields and (rest := chunks[_same_field_run(chunks) :]):
                taken[index] = rest
                chunks = chunks[: -len(rest)]
            chunk = TextChunk.joined(chunks)
            if self._record_delivery(chunk):
                return chunk
        return super()._take()  # raises: there is nothing

    def _record_delivery(self, chunk: TextChunk) -> bool:
        """Note that a chunk is given. Returns whether it is: not the last tokens, with no text."""
        row = self._rows[chunk.row]
        row.token_ids.extend(chunk.token_ids)
        if chunk:
            row.delivered_text.append(chunk)
        return bool(chunk) or chunk.field is not None

    def _conclude(self) -> None:
        if self._timing is not None:
            return
        for row in self._rows:
            row.finish_reason = self._reason(row)
            row.usage = row.compute_usage()
        self._timing = self._times()
        self._output = self._result
        if self._span is not None:
            self._span.end(self._rows, self._timing, self._error)

    def _times(self) -> Timing:
        """The seconds that it took until now, or until the worker had left."""
        turn, first, called = self._turn_at, self._first_token_at, self._called_at
        return Timing(
            queued=None if turn is None else turn - called,
            first_token=None if first is None else first - called,
            total=(perf_counter() if self._left_at is None else self._left_at) - called,
        )

    def _progress(self) -> tuple[str, int, int]:
        state, _, _ = super()._progress()
        computed = sum(row.computed_tokens for row in self._rows)
        return state, computed, sum(len(row.token_ids) for row in self._rows)

    def _summary(self) -> str:
        reasons = ", ".join(str(row.finish_reason) for row in self._rows)
        _, computed, delivered = self._progress()
        return f"{reasons}; {delivered} of {computed} tokens delivered; {self._timing}"

    def _reason(self, row: Row) -> FinishReason:
        """Decide why a row ended where several reasons meet. Called once, on the loop."""
        is_late = isinstance(self._error, GenerationTimeout)
        if self._error is not None and not is_late:
            return FinishReason.ERROR
        # The model's own end counts if the consumer was given all that it made.
        given = len(row.token_ids) == row.computed_tokens and not self._is_ready()
        if row.model_finish_reason is not None and given:
            return row.model_finish_reason
        if is_late:
            return FinishReason.TIMEOUT
        return (
            FinishReason.STOPPED if self._stopped or row.stop_requested else FinishReason.CANCELLED
        )


def _same_field_run(chunks: Sequence[TextChunk]) -> int:
    """How many of them, from the first one on, are parts of the same text."""
    first = chunks[0]
    if not first.is_complete_value:
        for count, chunk in enumerate(chunks):
            if chunk.is_complete_value or chunk.field != first.field:
                return count
        return len(chunks)
    return 1


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
