"""Reading an answer into its stream: to its end, to a deadline, or until nobody wants more."""

from __future__ import annotations

import math
from time import perf_counter

import httpx2
from anyio import CancelScope, current_time, get_cancelled_exc_class

from .._bridge import Sink
from .._errors import GenerationTimeout
from .._streams import GenerationState, TextChunk
from ._errors import connection_lost, to_public_error
from ._response import ResponseParser
from ._sse import EventData

__all__ = ["ResponseReader"]

# What follows a server's last word: a connection that is read to its end can be used again; and the
# usage comes after the finish reason. Both follow at once, or are not waited for (seconds).
DRAIN = 0.1
USAGE_TIMEOUT = 1.0


class ResponseReader:
    """One answer. The client's body is made of async generators, which do not close each other.

    One that is left in the middle is left to the garbage collector, of which trio complains. But
    what is raised in the innermost closes all. So nobody ever breaks out of the loop here: the
    scope is cancelled, and the loop goes on until the cancellation comes out of them.
    """

    def __init__(
        self, response: httpx2.Response, parser: ResponseParser, state: GenerationState
    ) -> None:
        self._response = response
        self._parser = parser
        self._state = state
        self._sink = Sink[TextChunk](state)
        self._events = EventData()
        self._scope = CancelScope()
        self._is_over = False  # nothing more is wanted
        self._is_ending = False  # nothing more is needed
        self._failure: Exception | None = None
        self._seconds_waited = 0.0  # for the consumer
        self._late = ""

    async def run(self) -> None:
        """Read it. Returns, or is cancelled, when the connection has been left."""
        cancellation = get_cancelled_exc_class()
        cancelled: BaseException | None = None
        try:
            with self._scope:
                self._set_deadline()
                async for part in self._response.aiter_bytes():
                    if self._is_over:
                        continue
                    self._take(part)
                    # Last words are few, and time runs: they do not wait for the consumer.
                    if self._is_ending or not self._sink.is_full:
                        continue
                    try:
                        await self._wait_for_space()
                    except cancellation as exc:
                        if not self._scope.cancel_called:
                            cancelled = exc
                            self._leave()
            if cancelled is None:
                self._check_end()
        except Exception as exc:
            if self._parser.ended is None:
                self._fail(to_public_error(exc, self._response.request, is_answering=True))
        finally:
            self._finish()
        if cancelled is not None:
            raise cancelled

    def _take(self, part: bytes) -> None:
        """Take a part of the body. Never raises."""
        parser, clock = self._parser, self._state.clock
        now = perf_counter()
        seen_before = parser.events_seen
        try:
            for data in self._events.feed(part):
                # One by one: those before what it fails with count.
                for chunk in parser.feed(data, clock.elapsed(now)):
                    self._sink.push(chunk)
                if parser.is_done:
                    break
        except Exception as exc:
            self._fail(to_public_error(exc, self._response.request, is_answering=True))
        has_more = parser.events_seen > seen_before
        if has_more:
            clock.tokens(None, now, now - self._seconds_waited)
        if self._sink.has_pending:
            self._sink.publish()
        if self._failure is not None:
            self._leave()
        elif parser.is_done or parser.has_enough:
            self._is_over = parser.is_done
            self._end_within(DRAIN)
        elif parser.ended is not None:
            self._end_within(USAGE_TIMEOUT)
        elif has_more:
            self._set_deadline()

    def _set_deadline(self) -> None:
        now = perf_counter()
        self._set_deadline_at(now, now - self._seconds_waited)

    def _set_deadline_at(self, now: float, busy: float) -> None:
        if self._state.clock.deadlines is not None and not self._is_ending:
            seconds, self._late = self._state.clock.deadlines.next(now, busy)
            self._scope.deadline = current_time() + seconds

    def _end_within(self, seconds: float) -> None:
        if not self._is_ending or self._is_over:
            self._is_ending = True
            self._scope.deadline = current_time() + seconds

    def _leave(self) -> None:
        """Close the connection."""
        self._is_over = True
        self._scope.cancel()

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure

    async def _wait_for_space(self) -> None:
        """Read no more while the buffer is full: the server's will be, some time later."""
        state = self._state
        started = perf_counter()
        self._set_deadline_at(started, -math.inf)  # until it reads again, only "total" can pass
        while self._sink.is_full and not (state.stop_requested or state.closed):
            await self._sink.wait_for_space()
        self._seconds_waited += perf_counter() - started
        self._set_deadline()

    def _check_end(self) -> None:
        """Find out what the end of the reading means, if it was not ours."""
        parser, host = self._parser, self._response.request.url.host
        if self._failure is not None or parser.ended is not None:
            return
        if self._scope.cancelled_caught:
            self._fail(GenerationTimeout(self._late))
        elif parser.is_done:
            self._fail(
                connection_lost(self._response.request, f"{host} did not say why its answer ended")
            )
        else:
            self._fail(connection_lost(self._response.request))

    def _finish(self) -> None:
        """Deliver all that there is, and how it ended."""
        parser = self._parser
        self._sink.push(*parser.finish(self._state.clock.elapsed(perf_counter())))
        self._sink.publish()
        self._state.rows[0].model_finish_reason = parser.ended
        if self._failure is not None:
            self._sink.fail(self._failure)
