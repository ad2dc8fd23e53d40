"""The send half of a stream, in a worker thread: delivers items, and says when to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any, Generic, TypeVar

from anyio import (
    EndOfStream,
    from_thread,
    get_cancelled_exc_class,
)
from anyio.lowlevel import (
    EventLoopToken,
    current_token,
)

from .._errors import GenerationStopped
from .stream import HOLDING_GUARD, ThreadStream

__all__ = ["Producer", "wrap_control_flow_exception"]

T = TypeVar("T")
StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")

# The crossing budget. A crossing blocks the worker until the loop has run a callback, so crossings
# may take the first share of its time. What is emitted in between waits for the next one, but no
# longer than the cap (seconds), unless the loop is so busy that crossings would then take more than
# the second share. What that costs and saves: benchmarks/overhead.py.
CROSSING_SHARE = 0.05
CROSSING_CAP = 0.002
CROSSING_SHARE_AT_MOST = 0.1

# A worker that waits for room in the buffer looks at the stop flag this often (seconds).
ROOM_POLL = 0.01


class Producer(Generic[T]):
    """The worker thread's side: delivers what is emitted, and says when to stop."""

    def __init__(
        self,
        stream: ThreadStream[T],
        is_model_needed: Callable[[], bool] | None = None,
        when_cancelled: Callable[[], None] | None = None,
    ) -> None:
        self._stream = stream
        # A scope around the worker has been cancelled. It may not be the consumer's.
        self._when_cancelled = when_cancelled or stream._abandon
        # Whether somebody waits for this producer's turn to end. They may be whom we wait for.
        self._is_model_needed = is_model_needed
        # Both are looked up on the loop: the worker must not need it to learn that it should stop.
        self._token: EventLoopToken = current_token()
        self._cancellation = get_cancelled_exc_class()
        self._thread = 0
        self._hold_until = 0.0
        # Of a crossing, in seconds. Before the first one: what the cap allows for.
        self._latest_cost = CROSSING_CAP * CROSSING_SHARE_AT_MOST
        self._has_refused = False  # an item, so that the producer knows
        self.extra_stop_check: Callable[[], bool] | None = None  # asked beside the flag
        self._seconds_held_up = 0.0  # by the loop and the consumer
        self._space_available = threading.Event()
        stream._space_available = self._space_available

    def run(self, produce: Callable[[StreamT, Producer[T]], object], stream: StreamT) -> None:
        """Call the producer and tell the stream how it ended. Raises nothing, ever."""
        self._thread = threading.get_ident()
        try:
            stream._result = produce(stream, self)
        except BaseException as exc:
            if (error := self._error_of(exc)) is not None:
                stream._error = error
        self._thread = 0

    def emit(self, item: T) -> None:
        """Deliver an item to the stream. Waits while its buffer is full and nobody needs the model.

        Raises:
            GenerationStopped: the stream has been stopped, or its consumer has gone.
            RuntimeError: called in another thread than the one that the producer runs in.
        """
        stream = self._stream
        if threading.get_ident() != self._thread:
            raise RuntimeError("emit() must be called in the thread that runs the producer")
        stopping = self.should_stop()
        if stream._cancelled or self._has_refused:
            raise GenerationStopped
        self.deliver(item)
        if stopping:
            self._has_refused = True
            raise GenerationStopped

    def deliver(self, *items: T) -> None:
        """As `emit` for one who asks `should_stop`: drops what nobody will read, refuses none."""
        stream = self._stream
        if stream._cancelled:
            return
        # Append before looking at the clock: then a receive() that looks later sees the items.
        stream._held.extend(items)
        if perf_counter() >= self._hold_until:
            self._cross()
        if stream._is_full():
            self._wait_for_space()

    def should_stop(self) -> bool:
        """Whether to return: asked by `stop()`, a cancelled scope or a consumer that has gone."""
        stream = self._stream
        if stream._stopped or stream._cancelled:
            return True
        # Sees a cancelled scope at once, even while the loop is blocked and can tell nobody.
        if threading.get_ident() == self._thread:
            try:
                from_thread.check_cancelled()
            except self._cancellation:
                self._when_cancelled()
                return True
        return self.extra_stop_check is not None and self.extra_stop_check()

    def busy_clock(self) -> float:
        """A clock that stands still while delivery holds the producer up."""
        return perf_counter() - self._seconds_held_up

    def _cross(self) -> None:
        started = perf_counter()
        delivered = from_thread.run_sync(self._stream._deliver, token=self._token)
        # Counted from the loop's clock reading, so that what is held after the loop's own guard has
        # looked for it cannot exist.
        cost = perf_counter() - started
        self._seconds_held_up += cost
        # One that was slow by chance says little of the next.
        usual, self._latest_cost = min(cost, self._latest_cost), cost
        hold = max(min(CROSSING_CAP, usual / CROSSING_SHARE), usual / CROSSING_SHARE_AT_MOST)
        self._hold_until = delivered + min(hold, HOLDING_GUARD / 2)

    def _wait_for_space(self) -> None:
        # On this side and in steps, not in send(): behind a dying loop that left threads stuck.
        stream = self._stream
        if stream._held:
            self._cross()
        is_model_needed = False
        while stream._is_full() and not is_model_needed and not self.should_stop():
            started = perf_counter()
            self._space_available.clear()
            is_model_needed = self._is_model_needed is not None and self._is_model_needed()
            if stream._is_full() and not is_model_needed:
                self._space_available.wait(ROOM_POLL)
            self._seconds_held_up += perf_counter() - started

    def _error_of(self, exc: BaseException) -> BaseException | None:
        """What the consumer shall see of an exception out of the producer."""
        if isinstance(exc, (GenerationStopped, self._cancellation)) and self.should_stop():
            return None
        return wrap_control_flow_exception(exc, self._cancellation)


def wrap_control_flow_exception(
    exc: BaseException, cancellation: type[BaseException]
) -> BaseException:
    """What a consumer shall see in place of an exception: some it would take for something else.

    For an end of the stream, or for a cancellation that is none.
    """
    signals = (StopIteration, StopAsyncIteration, GeneratorExit, EndOfStream, cancellation)
    if isinstance(exc, signals):
        error = RuntimeError(f"the producer raised {type(exc).__name__}")
        error.__cause__ = exc
        return error
    return exc
