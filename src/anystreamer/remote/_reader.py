"""Reads an answer into its stream: to its end, to a deadline, or until it is not wanted."""

from __future__ import annotations

import math
from time import perf_counter

from anyio import CancelScope, current_time, get_cancelled_exc_class
from anyio.lowlevel import cancel_shielded_checkpoint

from .._bridge import Sink
from .._errors import GenerationTimeout, describe
from .._reporting import SafeLogger
from .._streams import FinishReason, GenerationState, TextChunk
from ._errors import answer_error, connection_error, connection_lost
from ._http import httpx
from ._limits import LimitExceeded, Limits
from ._response import ResponseParser
from ._sse import EventData

__all__ = ["ResponseReader"]

logger = SafeLogger()

# How long to read on (seconds): after the last event, so that the connection can be used again, and
# after the finish reason, because the usage comes later. Usually what is awaited comes at once.
DRAIN = 0.1
USAGE_TIMEOUT = 1.0
# After a finish reason that came with text. Some servers send one with each piece of text, and the
# next piece can take long.
MORE_TEXT_TIMEOUT = 10.0
# The body is parsed in parts of this many bytes, which takes milliseconds, also with many small
# events. Other tasks run between the parts.
PART_SIZE = 8192


class ResponseReader:
    """Reads one answer. The client's body is made of async generators that do not close each other.

    A generator that is left before its end is closed by the garbage collector, which trio reports.
    An exception in the innermost one closes all of them. So the loop is never left with `break`:
    the scope is cancelled, and the loop goes on until the cancellation comes out of the generators.
    """

    def __init__(
        self,
        response: httpx.Response,
        parser: ResponseParser,
        state: GenerationState,
        limits: Limits,
    ) -> None:
        self._response = response
        self._parser = parser
        self._state = state
        self._sink = Sink[TextChunk](state)
        self._events = EventData(limits)
        self._scope = CancelScope()
        self._is_over = False  # the rest of the body is dropped
        self._is_ending = False  # the answer has ended, and the body is read on for a while
        self._failure: Exception | None = None
        self._seconds_waited = 0.0  # for the consumer
        self._next_phase = ""  # of the timeout that passes at the scope's deadline
        self._cancelled: BaseException | None = None  # by another scope, while it waited

    async def run(self) -> None:
        """Read the answer. Returns, or is cancelled, once the connection is closed or read."""
        try:
            with self._scope:
                self._set_deadline()
                async for part in self._response.aiter_raw():
                    for start in range(0, len(part), PART_SIZE):
                        if start:  # let other tasks run
                            await cancel_shielded_checkpoint()
                        await self._receive(part[start : start + PART_SIZE])
            if self._cancelled is None:
                self._check_end()
        except Exception as exc:
            self._fail_unless_ended(connection_error(exc, self._response.request))
        finally:
            self._finish()
        if self._cancelled is not None:
            raise self._cancelled

    async def _receive(self, part: bytes) -> None:
        """Take a part of the body, and wait for the consumer. Never raises."""
        if self._is_over:
            return
        self._take(part)
        # After the end of the answer, little comes and time is short: do not wait for the consumer.
        if self._is_ending or not self._sink.is_full:
            return
        try:
            await self._wait_for_space()
        except get_cancelled_exc_class() as exc:
            if not self._scope.cancel_called:
                self._cancelled = exc
                self._leave()

    def _take(self, part: bytes) -> None:
        """Take a part of the body. Never raises."""
        parser, clock = self._parser, self._state.clock
        now = perf_counter()
        seen_before = parser.events_seen
        self._parse(part, clock.elapsed(now))
        has_more = parser.events_seen > seen_before
        if has_more:
            clock.tokens(None, now, now - self._seconds_waited)
        if self._sink.has_pending:
            self._sink.publish()
        if self._failure is not None:
            self._leave()
        elif parser.is_done or parser.has_enough or self._is_over:
            self._is_over = self._is_over or parser.is_done
            self._end_within(DRAIN)
        elif parser.ended is not None:
            self._end_within(MORE_TEXT_TIMEOUT if parser.ended_with_text else USAGE_TIMEOUT)
        elif has_more:
            self._go_on()

    def _parse(self, part: bytes, elapsed: float) -> None:
        parser, request = self._parser, self._response.request
        try:
            for data in self._events.feed(part):
                try:
                    # One by one: the chunks before an error are delivered.
                    for chunk in parser.feed(data, elapsed):
                        self._sink.push(chunk)
                except Exception as exc:
                    self._fail_unless_ended(answer_error(exc, request))
                if parser.is_done or self._failure is not None:
                    return
        except LimitExceeded as exc:
            self._fail_unless_ended(answer_error(exc, request))
            self._is_over = True  # no more can be parsed

    def _go_on(self) -> None:
        """More text is expected."""
        if self._is_ending:  # a finish reason was sent too early
            self._is_ending = False
            self._scope.deadline = math.inf
        self._set_deadline()

    def _set_deadline(self) -> None:
        now = perf_counter()
        self._set_deadline_at(now, now - self._seconds_waited)

    def _set_deadline_at(self, now: float, busy: float) -> None:
        if self._state.clock.deadlines is not None and not self._is_ending:
            seconds, self._next_phase = self._state.clock.deadlines.next(now, busy)
            self._scope.deadline = current_time() + seconds

    def _end_within(self, seconds: float) -> None:
        deadline = current_time() + seconds
        self._scope.deadline = min(deadline, self._scope.deadline) if self._is_ending else deadline
        self._is_ending = True

    def _leave(self) -> None:
        """Close the connection."""
        self._is_over = True
        self._scope.cancel()

    def _fail_unless_ended(self, exc: Exception) -> None:
        """Fail, except if the answer has ended: it is complete, whatever goes wrong after that."""
        if self._parser.ended is not None:
            logger.debug("after the end of an answer: %s", describe(exc))
        else:
            self._fail(exc)

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure

    async def _wait_for_space(self) -> None:
        """Wait while the buffer is full. Nothing is read, so the server's buffers fill up, too."""
        state = self._state
        started = perf_counter()
        self._set_deadline_at(started, -math.inf)  # meanwhile only "total" counts
        while self._sink.is_full and not (state.stop_requested or state.closed):
            await self._sink.wait_for_space()
        self._seconds_waited += perf_counter() - started
        self._set_deadline()

    def _check_end(self) -> None:
        """Decide what it means that the reading has ended, unless the answer ended before."""
        parser, request = self._parser, self._response.request
        if not self._scope.cancelled_caught:
            parser.end_of_body()
        if self._failure is not None or parser.ended is not None:
            return
        if self._scope.cancelled_caught and not self._is_ending:
            self._fail(GenerationTimeout(self._next_phase))
        elif parser.is_done:
            message = f"{request.url.host} ended its answer without a finish_reason"
            self._fail(connection_lost(request, message))
        else:
            self._fail(connection_lost(request))

    def _finish(self) -> None:
        """Deliver the rest, and how the answer ended."""
        parser = self._parser
        self._sink.push(*parser.finish(self._state.clock.elapsed(perf_counter())))
        self._sink.publish()
        row = self._state.rows[0]
        row.model_finish_reason = parser.ended
        # An answer with tool calls has no text to parse as the form.
        row.is_form_complete = (
            parser.ended is FinishReason.EOS and "tool_calls" not in parser.message
        )
        if self._failure is not None:
            self._sink.fail(self._failure)
