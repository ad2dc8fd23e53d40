"""The state of a stream of text: its rows, its clock, and how each row ended. One owner for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from .._bridge import StreamState
from .._errors import GenerationTimeout
from .clock import TokenClock
from .tracing import GenerationSpan
from .types import FinishReason, Row, TextChunk, Timing

__all__ = ["GenerationState"]


class HasPosition(Protocol):
    """A place in a queue."""

    @property
    def position(self) -> int | None: ...


class GenerationState(StreamState[TextChunk]):
    """Adds to `StreamState` what a generation has. The rules there hold here as well.

    `rows` and `clock` are written by whoever produces: before its turn the task that prepares it,
    then its worker. The fields of a row that tell what was delivered, and all others, are the
    loop's.
    """

    def __init__(
        self, max_buffer_size: float = math.inf, *, span: GenerationSpan | None = None
    ) -> None:
        super().__init__(max_buffer_size)
        self.rows = [Row()]
        self.clock = TokenClock()
        self.ticket: HasPosition | None = None  # in the queue of an engine
        self.timing: Timing | None = None  # until the end
        self.output: Any = None  # what generate() returned; until the end
        self.span = span
        self._unjoined: dict[int, list[TextChunk]] = {}  # by row: taken, and not yet delivered

    # -- to the consumer

    @property
    def has_item(self) -> bool:
        """Whether there is a chunk to take."""
        return bool(self._unjoined) or super().has_item

    def take(self) -> TextChunk:
        """Take what is ready of one row, joined. Raises WouldBlock or EndOfStream."""
        unjoined = self._unjoined
        if self.buffered == 1 and not unjoined:  # nothing to join
            chunk = super().take()
            if self._record_delivery(chunk):
                return chunk
        while self.buffered:
            chunk = super().take()
            unjoined.setdefault(chunk.row, []).append(chunk)
        while unjoined:
            number = next(iter(unjoined))
            chunks = unjoined.pop(number)
            if self.rows[number].has_fields and (rest := chunks[_same_field_run(chunks) :]):
                unjoined[number] = rest
                chunks = chunks[: -len(rest)]
            chunk = TextChunk.joined(chunks)
            if self._record_delivery(chunk):
                return chunk
        return super().take()  # raises: there is nothing

    def _record_delivery(self, chunk: TextChunk) -> bool:
        """Note a chunk. Returns whether it is to be delivered: not the last ids, with no text."""
        row = self.rows[chunk.row]
        row.token_ids.extend(chunk.token_ids)
        if chunk:
            row.delivered_text.append(chunk)
        return bool(chunk) or chunk.field is not None

    # -- the end

    def finalize(self) -> None:
        """Decide how each row ended."""
        if self.timing is not None:
            return
        for row in self.rows:
            row.finish_reason = self._finish_reason(row)
            row.usage = row.compute_usage()
        self.timing = self.clock.timing(self.started_at, self.exited_at)
        self.output = self.result
        if self.span is not None:
            self.span.end(self.rows, self.timing, self.error)

    def _finish_reason(self, row: Row) -> FinishReason:
        """Decide why a row ended where several reasons meet."""
        is_late = isinstance(self.error, GenerationTimeout)
        if self.error is not None and not is_late:
            return FinishReason.ERROR
        # The model's own end counts if the consumer was given all that it made.
        is_delivered = len(row.token_ids) == row.computed_tokens and not self.has_item
        if row.model_finish_reason is not None and is_delivered:
            return row.model_finish_reason
        if is_late:
            return FinishReason.TIMEOUT
        is_stopped = self.stop_requested or row.stop_requested
        return FinishReason.STOPPED if is_stopped else FinishReason.CANCELLED

    def progress(self) -> tuple[int, int]:
        """How many tokens have been computed, and delivered."""
        return (
            sum(row.computed_tokens for row in self.rows),
            sum(len(row.token_ids) for row in self.rows),
        )

    def summary(self) -> str:
        """How it ended, in words, for the log."""
        reasons = ", ".join(str(row.finish_reason) for row in self.rows)
        computed, delivered = self.progress()
        return f"{reasons}; {delivered} of {computed} tokens delivered; {self.timing}"


def _same_field_run(chunks: Sequence[TextChunk]) -> int:
    """How many of them, from the first one on, are parts of the same text."""
    first = chunks[0]
    if not first.is_complete_value:
        for count, chunk in enumerate(chunks):
            if chunk.is_complete_value or chunk.field != first.field:
                return count
        return len(chunks)
    return 1
