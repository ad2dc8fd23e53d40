"""A request that continuous batching works on: from its results to text."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._bridge import SafeEvent, wrap_control_flow_exception
from .._errors import GenerationTimeout
from .._generation import GenerationRequest, eos_ids
from .._streams import Deadlines, FinishReason, TextStream, Timeouts

if TYPE_CHECKING:
    from .continuous import ContinuousBatchingEngine

__all__ = ["ActiveRequest"]

_request_ids = count(1)


def _deliver(changed: Iterable[ActiveRequest]) -> None:
    """Bring over what several streams have got. On the loop."""
    for generation in changed:
        stream = generation.stream
        stream._fetch()
        stream._ready.set()
        if generation.finished:
            generation.finished_event.set()


class ActiveRequest:
    """A request that the manager works on: from its results to text. The drain's alone."""

    def __init__(
        self,
        engine: ContinuousBatchingEngine,
        request: GenerationRequest,
        stream: TextStream,
        max_new_tokens: int,
    ) -> None:
        (self._row,) = stream._rows
        self.engine = engine
        self.request = request
        self.stream = stream
        self.id = f"anystreamer-{next(_request_ids)}"
        self.eos = eos_ids(request.setting("eos_token_id"))
        self.max_new_tokens = max_new_tokens
        self.finished = False
        self.finished_event = SafeEvent()  # on the loop
        self._text = request.row_text(0, self._row)
        self._already_seen = 0
        self._heard_at: float | None = None
        self._deadlines: Deadlines | None = None
        if request.timeouts != Timeouts():
            self._deadlines = Deadlines(request.timeouts, stream._called_at, perf_counter())

    def process_result(self, result: Any, now: float) -> bool:
        """Take its latest result. Returns whether there is anything to deliver. Never raises."""
        if self.finished:
            return False
        stream = self.stream
        held = len(stream._held)
        try:
            new = result.generated_tokens[self._already_seen :]
            if new:
                self._take(new, now)
            if self._text.ended is not None or result.is_finished():
                if result.error is not None and self._text.ended is None:
                    raise self._error(result.error)
                self.finish()
        except BaseException as exc:  # Rust's panics are no Exception
            self.finish(exc)
        return self.finished or len(stream._held) > held

    def _take(self, new: list[int], now: float) -> None:
        stream = self.stream
        if stream._first_token_at is None:
            stream._first_token_at = now
        self._already_seen += len(new)
        self.engine.metrics.tokens(len(new), now, self._heard_at)
        self._heard_at = now
        if self._deadlines is not None:
            self._deadlines.check(now, now)  # it may have come too late
            self._deadlines.token_made(now)
        elapsed = now - stream._called_at
        # A stop string ends it with the very token that completes it.
        for ids in ([each] for each in new) if self.request.stop else (new,):
            stream._held.extend(self._text.take(ids, None, elapsed))
            if self._text.ended is not None:
                return

    def is_to_end(self, now: float) -> bool:
        """Whether somebody asks it to stop, or it is late."""
        stream = self.stream
        if stream._stopped or stream._cancelled:
            return True
        return self._deadlines is not None and self._deadlines.check(now, now)

    def finish(self, error: BaseException | None = None) -> None:
        """End it, with all that it has. Never raises."""
        stream, row = self.stream, self._row
        self.engine.cancel(self)
        try:
            stream._held.extend(self._text.finish(perf_counter() - stream._called_at))
        except BaseException as exc:
            error = exc if error is None else error
        if error is not None and stream._error is None:
            stream._error = wrap_control_flow_exception(error, self.engine.cancellation)
        self.finished = True
        if self._text.ended is not None:
            row.model_finish_reason = self._text.ended
        elif self._already_seen >= self.max_new_tokens:
            row.model_finish_reason = FinishReason.LENGTH
        elif (
            self._deadlines is not None and self._deadlines.expired_phase and stream._error is None
        ):
            stream._error = GenerationTimeout(self._deadlines.expired_phase)

    def _error(self, words: str) -> Exception:
        """What a request failed of: its own, or the manager's death."""
        engine = self.engine
        if engine._settings.is_dying(engine.manager):
            return engine._death()
        return RuntimeError(words)
