"""The state of a stream of text: its rows, its clock, and how each row ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from .._bridge import Ending, StreamState, uninterrupted
from .._errors import GenerationTimeout, is_kind
from .clock import TokenClock
from .tracing import GenerationSpan
from .types import FinishReason, Row, TextChunk, Timing

__all__ = ["GenerationState"]


class HasPosition(Protocol):
    """A place in a queue."""

    @property
    def position(self) -> int | None: ...


class GenerationState(StreamState[TextChunk]):
    """Adds to `StreamState` what a generation has. The rules of `StreamState` hold here as well.

    The producer writes `rows` and `clock`: first the task that prepares the generation, then its
    worker. The loop writes all other attributes, and the fields of a row that follow the delivery.
    """

    def __init__(
        self, max_buffer_size: float = math.inf, *, span: GenerationSpan | None = None
    ) -> None:
        super().__init__(max_buffer_size)
        self.rows: list[Row] = [Row()]
        self.clock: TokenClock = TokenClock()
        self.ticket: HasPosition | None = None  # in the queue of an engine
        self.timing: Timing | None = None  # until the end
        self.output: Any = None  # what generate() returned; until the end
        self.span = span
        self._first_chunk: float | None = None  # when it was made, in seconds since the call
        # By row: chunks out of the memory object stream that the consumer has not got yet.
        self._unjoined: dict[int, list[TextChunk]] = {}

    # -- to the consumer

    @property
    def has_item(self) -> bool:
        """Whether there is a chunk to take."""
        return bool(self._unjoined) or super().has_item

    @uninterrupted  # or it would lose text
    def take(self) -> TextChunk:
        """Take all that is ready of one row, as one chunk. Raises WouldBlock or EndOfStream."""
        unjoined = self._unjoined
        if self.buffered == 1 and not unjoined:  # nothing to join
            chunk = super().take()
            self._note_first((chunk,))
            if self._record_delivery(chunk):
                return chunk
        while self.buffered > 0:
            chunk = self.take_buffered()
            unjoined.setdefault(chunk.row, []).append(chunk)
        while unjoined:
            chunk = self._take_joined()
            if self._record_delivery(chunk):
                return chunk
        return super().take()  # raises: there is nothing

    def _take_joined(self) -> TextChunk:
        """Join the chunks of the first row, as far as they are parts of the same text."""
        number = next(iter(self._unjoined))
        chunks = self._unjoined.pop(number)
        if self.rows[number].has_fields and (rest := chunks[_same_field_run(chunks) :]):
            self._unjoined[number] = rest
            chunks = chunks[: -len(rest)]
        self.count_taken(len(chunks))
        self._note_first(chunks)
        return TextChunk.joined(chunks)

    def _note_first(self, chunks: Sequence[TextChunk]) -> None:
        """Note when the first chunk was made that the consumer gets."""
        if self._first_chunk is None:
            delivered = (chunk for chunk in chunks if chunk or chunk.field is not None)
            self._first_chunk = next((chunk.elapsed for chunk in delivered), None)

    def _record_delivery(self, chunk: TextChunk) -> bool:
        """Record a chunk. Returns whether to deliver it: ids without text are not delivered."""
        row = self.rows[chunk.row]
        row.token_ids.extend(chunk.token_ids)
        if chunk:
            row.delivered_text.append(chunk)
        is_delivered = bool(chunk) or chunk.field is not None
        if not is_delivered:
            row.textless_end = chunk
        return is_delivered

    # -- the end

    def finalize(self) -> None:
        """Decide how each row ended. The first call decides."""
        if self.timing is not None:
            return
        for row in self.rows:
            row.finish_reason = self._finish_reason(row)
            row.usage = row.compute_usage()
        self.timing = self.clock.timing(self.started_at, self.exited_at)
        self.output = self.result
        super().finalize()
        if self.span is not None:
            self.span.end(self.rows, self.timing, self._first_chunk, self.error)

    def decide_ending(self) -> Ending:
        """Decide it from the finish reasons of the rows."""
        if self.error is not None:
            return Ending.FAILED
        reasons = {row.finish_reason for row in self.rows}
        if FinishReason.CANCELLED in reasons:
            return Ending.CANCELLED
        return Ending.STOPPED if FinishReason.STOPPED in reasons else Ending.ENDED

    def _finish_reason(self, row: Row) -> FinishReason:
        """Decide why a row ended, where several reasons meet."""
        is_late = is_kind(self.error, GenerationTimeout)
        if self.error is not None and not is_late:
            return FinishReason.ERROR
        # The model's own end counts if the consumer has got all that the model made.
        is_delivered = len(row.token_ids) == row.computed_tokens and not self.has_item
        if row.model_finish_reason is not None and is_delivered:
            return row.model_finish_reason
        if is_late:
            return FinishReason.TIMEOUT
        is_stopped = self.stop_requested or row.stop_requested
        return FinishReason.STOPPED if is_stopped else FinishReason.CANCELLED

    def drop_items(self) -> None:
        """Drop all chunks that were not received."""
        super().drop_items()
        self._unjoined.clear()

    def progress(self) -> tuple[int, int]:
        """Return how many tokens have been computed, and how many delivered."""
        return (
            sum(row.computed_tokens for row in self.rows),
            sum(len(row.token_ids) for row in self.rows),
        )

    def summary(self) -> str:
        """Describe how each row ended, for the log."""
        reasons = ", ".join(str(row.finish_reason) for row in self.rows)
        computed, delivered = self.progress()
        return f"{reasons}; {delivered} of {computed} tokens delivered; {self.timing}"


def _same_field_run(chunks: Sequence[TextChunk]) -> int:
    """Return how many chunks, from the first one on, are parts of the same text."""
    first = chunks[0]
    if not first.is_complete_value:
        for count, chunk in enumerate(chunks):
            if chunk.is_complete_value or chunk.field != first.field:
                return count
        return len(chunks)
    return 1
