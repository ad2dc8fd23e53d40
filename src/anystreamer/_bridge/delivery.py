"""From a thread to the loop: the sink, the budget of crossings, and a guard on the loop."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter, sleep
from typing import Any, Generic, TypeVar

from anyio import CancelScope, from_thread, get_cancelled_exc_class
from anyio import sleep as async_sleep
from anyio.lowlevel import EventLoopToken, current_token

from .._errors import wrap_control_flow_exception
from .join import SafeEvent
from .state import HOLDING_GUARD, Phase, StreamState

__all__ = ["QUEUE_POLL", "Crossing", "Sink", "guard"]

T = TypeVar("T")

# The crossing budget. A crossing blocks the worker until the loop has run a callback. So crossings
# take the first share of the worker's time at most. Items that are pushed in between wait for the
# next crossing, but not for longer than the cap (seconds), unless the loop is so busy that
# crossings would then take more than the second share. benchmarks/overhead.py measures it.
CROSSING_SHARE = 0.05
CROSSING_CAP = 0.002
CROSSING_SHARE_AT_MOST = 0.1

# stop() only sets an attribute, because nothing else is safe in a signal handler. While a worker
# waits for its turn, a task on the loop looks at the attribute this often (seconds).
QUEUE_POLL = 0.05


class Sink(Generic[T]):
    """The send half of a stream, for the producer of its items, in whichever thread that runs.

    Made on the loop.
    """

    def __init__(self, state: StreamState[T]) -> None:
        self._state = state
        self._cancellation = get_cancelled_exc_class()

    def push(self, *items: T) -> None:
        """Add items, which `publish` delivers. Drops them if they will not be read."""
        self._state.push(*items)

    def publish(self) -> float:
        """Deliver the items that were pushed. On the loop. Returns the time (perf_counter)."""
        return self._state.publish()

    @property
    def has_pending(self) -> bool:
        """Whether items were pushed and are not yet delivered."""
        return bool(self._state.pending)

    @property
    def is_full(self) -> bool:
        """Whether `max_buffer_size` items wait for the consumer."""
        return self._state.is_full

    async def wait_for_space(self) -> None:
        """Wait until the consumer has taken an item or closed the stream. On the loop."""
        self._state.space_available = space = SafeEvent()
        await space.wait()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, after its items. The first error counts."""
        self._state.fail(wrap_control_flow_exception(error, self._cancellation))

    def succeed(self, result: Any) -> None:
        """Keep what the producer has returned."""
        self._state.result = result


class Crossing:
    """Takes what a thread has pushed over to the loop, as often as the budget allows.

    Made on the loop, used in one thread.
    """

    def __init__(self, sink: Sink[Any]) -> None:
        self.sink = sink  #: whose items it delivers
        # Looked up on the loop: the thread must not need it later.
        self._token: EventLoopToken = current_token()
        self._hold_until = 0.0
        # In seconds. Before the first crossing: a cost that the cap allows for.
        self._latest_cost = CROSSING_CAP * CROSSING_SHARE_AT_MOST
        self.seconds = 0.0  #: how long crossings have held up the thread

    @property
    def is_due(self) -> bool:
        """Whether the budget allows for a crossing now."""
        return perf_counter() >= self._hold_until

    def sleep_until_due(self) -> None:
        """Block until the budget allows for a crossing."""
        sleep(max(0.0, self._hold_until - perf_counter()))

    def flush(self) -> None:
        """Block until the loop has delivered the items that were pushed.

        Raises:
            RuntimeError: the loop has ended.
        """
        started = perf_counter()
        delivered = from_thread.run_sync(self.sink.publish, token=self._token)
        cost = perf_counter() - started
        self.seconds += cost
        # One crossing that was slow by chance says little about the next one.
        usual, self._latest_cost = min(cost, self._latest_cost), cost
        hold = max(min(CROSSING_CAP, usual / CROSSING_SHARE), usual / CROSSING_SHARE_AT_MOST)
        # From the time that the loop has read, and for less than the guard waits from then on: no
        # item can be held back after the guard has looked for it.
        self._hold_until = delivered + min(hold, HOLDING_GUARD / 2)


async def guard(state: StreamState[Any]) -> None:
    """While a receive() waits, do what the producer cannot: deliver, and see a stop in the queue.

    It runs in a task of its own and never raises. A deadline around the wait would do the same, but
    up to anyio 4.15 it swallows a native cancellation that comes in the same tick.
    """
    # Shielded: where a scope and a scope around it are both cancelled, anyio 4.16 takes back one
    # cancellation too many in the task of the outer one.
    with suppress(get_cancelled_exc_class()), CancelScope(shield=True) as state.guard_scope:
        while not (state.closed or state.has_exited):
            await state.receive_began.wait()
            state.receive_began = SafeEvent()
            while state.phase is Phase.QUEUED:
                if state.stop_requested:
                    state.scope.cancel()
                await async_sleep(QUEUE_POLL)
            while (nap := state.guard_at - perf_counter()) > 0:
                await async_sleep(nap)
            if state.pending:
                state.drain_pending()
                state.receiver_waiting.set()
