"""Reading an answer into its stream: to its end, to a deadline, or until nobody wants more."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import httpx2
from anyio import CancelScope, current_time, get_cancelled_exc_class

from .._bridge import SafeEvent
from .._errors import GenerationTimeout
from .._streams import Deadlines, TextStream, Timeouts
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
        self,
        response: httpx2.Response,
        answer: ResponseParser,
        stream: TextStream,
        timeouts: Timeouts,
        on_pause: Callable[[float], None],
    ) -> None:
        self._response = response
        self._answer = answer
        self._stream = stream
        self._on_pause = on_pause  # told the seconds from one piece to the next
        self._events = EventData()
        self._scope = CancelScope()
        self._last_event_at: float | None = None
        self._is_over = False  # nothing more is wanted
        self._is_ending = False  # nothing more is needed
        self._failure: Exception | None = None
        self._seconds_held_up = 0.0  # by the consumer
        self._late = ""
        self._deadlines: Deadlines | None = None
        if timeouts != Timeouts():
            self._deadlines = Deadlines(timeouts, stream._called_at, perf_counter())

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
                    if self._is_ending or not self._stream._is_full():
                        continue
                    try:
                        await self._wait_for_room()
                    except cancellation as exc:
                        if not self._scope.cancel_called:
                            cancelled = exc
                            self._leave()
            if cancelled is None:
                self._look_at_the_end()
        except Exception as exc:
            if self._answer.ended is None:
                self._fail(to_public_error(exc, self._response.request, is_answering=True))
        finally:
            self._finish()
        if cancelled is not None:
            raise cancelled

    def _take(self, part: bytes) -> None:
        """Take a part of the body. Never raises."""
        stream, answer = self._stream, self._answer
        now = perf_counter()
        events_seen = answer.events_seen
        try:
            for data in self._events.feed(part):
                stream._held.extend(answer.feed(data, now - stream._called_at))
                if answer.is_done:
                    break
        except Exception as exc:
            self._fail(to_public_error(exc, self._response.request, is_answering=True))
        if answer.events_seen > events_seen:
            self._note(now)
        if stream._held:
            stream._deliver()
        if self._failure is not None:
            self._leave()
        elif answer.is_done or answer.has_enough:
            self._is_over = answer.is_done
            self._end_within(DRAIN)
        elif answer.ended is not None:
            self._end_within(USAGE_TIMEOUT)
        elif answer.events_seen > events_seen:
            self._set_deadline()

    def _note(self, now: float) -> None:
        """Something has been said."""
        if self._last_event_at is None:
            self._stream._first_token_at = now
        else:
            self._on_pause(now - self._last_event_at)
        self._last_event_at = now
        if self._deadlines is not None:
            self._deadlines.token_made(now - self._seconds_held_up)

    def _set_deadline(self) -> None:
        if self._deadlines is not None and not self._is_ending:
            now = perf_counter()
            seconds, self._late = self._deadlines.next(now, now - self._seconds_held_up)
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

    async def _wait_for_room(self) -> None:
        """Read no more while the buffer is full: the server's will be, some time later."""
        stream = self._stream
        started = perf_counter()
        if self._deadlines is not None:
            # Until it reads again, only the end of all time can come.
            seconds, self._late = self._deadlines.next(started, float("-inf"))
            self._scope.deadline = current_time() + seconds
        while stream._is_full() and not (stream._stopped or stream._closed):
            room = stream._space_available = SafeEvent()
            await room.wait()
        self._seconds_held_up += perf_counter() - started
        self._set_deadline()

    def _look_at_the_end(self) -> None:
        """Find out what the end of the reading means, if it was not ours."""
        answer, host = self._answer, self._response.request.url.host
        if self._failure is not None or answer.ended is not None:
            return
        if self._scope.cancelled_caught:
            self._fail(GenerationTimeout(self._late))
        elif answer.is_done:
            self._fail(
                connection_lost(self._response.request, f"{host} did not say why its answer ended")
            )
        else:
            self._fail(connection_lost(self._response.request))

    def _finish(self) -> None:
        """Deliver all that there is, and how it ended."""
        stream, answer = self._stream, self._answer
        stream._held.extend(answer.finish(perf_counter() - stream._called_at))
        stream._deliver()
        stream._rows[0].model_finish_reason = answer.ended
        if stream._error is None:
            stream._error = self._failure
