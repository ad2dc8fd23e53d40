"""The send half of a stream, in a worker thread: delivers items, and says when to stop."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from threading import get_ident
from time import perf_counter
from typing import Any, Generic, TypeVar

from anyio import get_cancelled_exc_class
from anyio.lowlevel import EventLoopToken, current_token

from .._errors import GenerationStopped
from .delivery import Crossing
from .join import ThreadEvent
from .loop_call import call_until_stopped
from .sink import Sink
from .state import StreamState
from .stop_callbacks import StopCallbacks

__all__ = ["Producer"]

T = TypeVar("T")
ResultT = TypeVar("ResultT")

# While a worker waits for space in the buffer, no event wakes it when a scope is cancelled, when
# another task needs the model, when a deadline has passed, or when there is space, but less than
# half of it. So it polls at this interval (seconds). The interval grows if only the first and the
# last can happen: the loop sees a cancelled scope by itself, unless it is blocked.
SPACE_POLL = 0.01
SPACE_POLL_AT_MOST = 0.5
SPACE_POLL_SHARE = 0.1  # of the time that it has waited


class Producer(Generic[T]):
    """Delivers what is emitted, and says when to stop.

    Made on the loop, run in one thread. Other threads can call `emit` and `should_stop` as long as
    it runs: only that thread sees a cancelled scope at once, the others when the loop has seen it.
    """

    def __init__(
        self,
        state: StreamState[T],
        is_model_needed: Callable[[], bool] | None = None,
        when_cancelled: Callable[[], None] | None = None,
    ) -> None:
        self._state = state
        # Called when a scope around the worker was cancelled. It may not be the consumer's scope.
        self._when_cancelled = when_cancelled or state.abandon
        # Whether another task waits for the model. It may be our own consumer: blocking here would
        # then deadlock.
        self._is_model_needed = is_model_needed
        # Looked up on the loop: a worker must not need the loop to find out that it should stop.
        self._cancellation = get_cancelled_exc_class()
        self._sink = Sink(state)
        self._crossing = Crossing(state)
        self._token: EventLoopToken = current_token()
        # `anyio.from_thread.check_cancelled` without its search for the backend: each item asks.
        self._check_cancelled: Callable[[], None] = self._token.backend_class.check_cancelled
        self._thread = 0  # that runs it, as long as it does
        self._is_bounded = state.max_buffer_size != math.inf
        self._push_lock = threading.Lock()  # between the threads that emit
        self._has_refused = False  # emit() has raised GenerationStopped
        self._extra_stop_check: Callable[[], bool] | None = None
        self._seconds_waited = 0.0  # for space in the buffer
        state.stop_callbacks = self._stop_callbacks = StopCallbacks()
        state.space_available = self._space_available = ThreadEvent()

    def run(self, produce: Callable[[Producer[T]], object]) -> None:
        """Call the producer, and put its result or its error into the state. Never raises."""
        self._thread = get_ident()
        try:
            result = produce(self)
            self._state.returned_by_itself = not self._state.should_end
            self._sink.succeed(result)
        except (GenerationStopped, self._cancellation) as exc:
            # From a producer that was stopped, these are the normal end.
            if not self.should_stop():
                self._sink.fail(exc)
        except BaseException as exc:
            self._sink.fail(exc)
        self._thread = 0
        self._stop_callbacks.end()

    def emit(self, *items: T) -> None:
        """Deliver items. Waits while the buffer is full, unless another task needs the model.

        Raises:
            GenerationStopped: the stream has been stopped, or its consumer has gone.
            RuntimeError: the producer has returned; or this is the thread of the event loop.
        """
        is_own_thread = get_ident() == self._thread
        if not is_own_thread:
            self._check_thread()
        is_stopping = self._is_stopping(is_own_thread)
        if is_stopping and (self._state.abandoned or self._has_refused):
            raise GenerationStopped
        with self._push_lock:
            self._state.push(*items)
        self._deliver()
        if is_stopping:
            self._has_refused = True
            raise GenerationStopped

    def _check_thread(self) -> None:
        if not self._thread:
            raise RuntimeError(f"emit() was called after {self._state.name} had returned")
        try:
            is_loop = current_token() == self._token
        except RuntimeError:  # no event loop runs in this thread
            return
        if is_loop:
            raise RuntimeError("emit() waits for the event loop, so it cannot be called in it")

    def deliver(self, *items: T) -> None:
        """Deliver items, for a producer that asks `should_stop`: after a stop it drops them.

        Otherwise the same as `emit`.
        """
        if self._state.abandoned:
            return
        self._sink.push(*items)
        self._deliver()

    def _deliver(self) -> None:
        self._crossing.deliver()
        if self._is_bounded and self._state.is_full:
            self._wait_for_space()

    def should_stop(self) -> bool:
        """Whether to return: after `stop()`, a cancelled scope, or the end of the block."""
        return self._is_stopping(get_ident() == self._thread)

    def _is_stopping(self, is_own_thread: bool) -> bool:
        state = self._state
        if state.stop_requested or state.abandoned:
            return True
        # Sees a cancelled scope at once, even while the loop is blocked.
        if is_own_thread:
            try:
                self._check_cancelled()
            except self._cancellation:
                self._when_cancelled()
                return True
        return self._extra_stop_check is not None and self._extra_stop_check()

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call a function once at a stop, or now if that has come."""
        self._stop_callbacks.add(callback)
        if self._state.should_end:
            self._stop_callbacks.call()

    def wait_for(self, func: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Await something in the event loop, until a stop. See `Stopping.wait_for`."""
        if get_ident() != self._thread:
            raise RuntimeError("wait_for() can only be called in the producer's own thread")
        if self.should_stop():
            raise GenerationStopped
        return call_until_stopped(self._state, func)

    def check_also(self, extra_stop_check: Callable[[], bool] | None) -> None:
        """Let `should_stop` call this function as well; None ends that."""
        self._extra_stop_check = extra_stop_check

    def succeed(self, result: Any) -> None:
        """Keep a result before the producer returns, because it can still fail."""
        self._sink.succeed(result)

    def busy_clock(self) -> float:
        """A clock in seconds that stands still while delivery holds the producer up."""
        return perf_counter() - self._crossing.seconds - self._seconds_waited

    def _wait_for_space(self) -> None:
        # In this thread and in short steps. A blocking send() on the loop left threads stuck when
        # the loop ended.
        state, space = self._state, self._space_available
        if state.pending and state.has_waiter:  # a consumer that does not wait takes them itself
            self._crossing.flush()
        began, waited_before = perf_counter(), self._seconds_waited
        space.clear()  # before each look, so that what comes after it ends the wait
        while state.is_full and not self.should_stop() and not self._gives_way():
            state.hold()
            space.wait(self._space_poll(perf_counter() - began))
            self._seconds_waited = waited_before + perf_counter() - began
            space.clear()
        self._seconds_waited = waited_before + perf_counter() - began
        self._crossing.note_wait()
        state.is_held = False
        space.set()  # for another thread that waits: `clear` can have come before it woke

    def _gives_way(self) -> bool:
        return self._is_model_needed is not None and self._is_model_needed()

    def _space_poll(self, waited: float) -> float:
        if self._is_model_needed is not None or self._extra_stop_check is not None:
            return SPACE_POLL
        return min(max(SPACE_POLL, waited * SPACE_POLL_SHARE), SPACE_POLL_AT_MOST)
