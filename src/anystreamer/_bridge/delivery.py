"""From threads to an event loop: one delivery for all its streams, with one budget of crossings.

A *crossing* makes the loop deliver, and blocks the thread that asks for it until the loop has done
so. It takes along what all streams of the loop have pending. So threads that work side by side
share its cost, and only one of them is stopped at a time.

A thread crosses to wake a consumer, and to hand the GIL to the loop. Where it has just done the
latter by waiting for space, and the consumer is awake and takes items by itself, it does not cross.

Between crossings, items wait in `StreamState.pending` for as long as the budget demands: the
*delay*. The next thread that comes after the delay crosses. If none comes, because the producers
have stalled, the loop delivers by itself: a *timer* runs a moment after the delay has ended. If the
timer finds nothing, it has still cost the model time. So the loop sets it only in a burst, when
items come faster than the budget allows. Whether it is set decides what a thread does before the
delay has ended: it crosses if no timer is set, and otherwise leaves its item to the next crossing,
or to the timer.

Why no item stays behind. A thread appends its item, registers its stream (`_waiting`), and only
then reads `_timer_is_set`, the clock, and tries the lock. The loop clears `_timer_is_set` before it
collects the items. So an item that the loop has missed was appended later, and its thread sees that
no timer is set (and crosses), or that it was set after that (and will find the item). A thread that
fails to get the lock registered its stream before the thread which holds the lock releases it and
checks `_waiting` again.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter, sleep
from typing import Any

from anyio import CancelScope, from_thread, get_cancelled_exc_class, sleep_forever
from anyio import current_time as loop_time
from anyio import sleep as async_sleep
from anyio.lowlevel import EventLoopToken, RunVar, current_token

from .interrupts import uninterrupted
from .join import cancel_again
from .state import NO_WAITER, Phase, StreamState

__all__ = ["QUEUE_POLL", "Crossing", "LoopDelivery", "guard"]

# The budget, for the time of the thread that crosses. Crossings take the first share of it at most.
# Items wait for the next crossing, but not for longer than the cap (seconds), unless the loop is so
# busy that crossings would then take more than the second share. benchmarks/overhead.py measures
# it.
CROSSING_SHARE = 0.05
CROSSING_CAP = 0.002
CROSSING_SHARE_AT_MOST = 0.1
MAX_DELAY = 0.01

# The timer runs this long after the delay has ended (seconds), or half of the delay after it.
# Before that, a producer that has not stalled crosses: then the timer is set again, which costs
# less than running it.
TIMER_MARGIN = 0.001

# stop() only sets an attribute, because nothing else is safe in a signal handler. While workers
# wait for their turns, a task on the loop reads their attributes this often (seconds).
QUEUE_POLL = 0.05


class LoopDelivery:
    """Delivers what the streams of one event loop have pending.

    It keeps no reference to the loop, and none to a stream that has ended.
    """

    def __init__(self) -> None:
        self._waiting: deque[StreamState[Any]] = deque()  # with items that threads have pushed
        self._lock = threading.Lock()  # held by the thread that crosses
        self._delay_until = 0.0  # perf_counter
        # How long items wait after a delivery, as the latest crossings have cost (seconds).
        self._delay = CROSSING_CAP
        self._latest_cost = CROSSING_CAP * CROSSING_SHARE_AT_MOST
        self._timers: list[_Timer] = []  # the first one is set and runs
        self._timer_is_set = False
        self._queued: list[StreamState[Any]] = []  # the guard of the first one watches all

    @staticmethod
    def of_this_loop() -> LoopDelivery:
        """Return the one of the running event loop."""
        try:
            return _delivery.get()
        except LookupError:
            _delivery.set(delivery := LoopDelivery())
            return delivery

    # -- from any thread

    def register(self, state: StreamState[Any]) -> None:
        """Have the next delivery take along what *state* has pending."""
        if not state.is_registered:
            state.is_registered = True
            self._waiting.append(state)

    @property
    def is_delaying(self) -> bool:
        """Whether an item that has been registered can wait: for a crossing, or for the timer."""
        return self._timer_is_set and perf_counter() < self._delay_until

    def cross_in_turn(self, state: StreamState[Any], cross: Callable[[], None]) -> None:
        """Call *cross* if it is due, unless another thread is crossing: it delivers this too."""
        # Again for a thread that found the lock held, after the loop had collected the items.
        while self._waiting and self._is_due(state) and self._lock.acquire(blocking=False):
            try:
                cross()
            finally:
                self._lock.release()

    def _is_due(self, state: StreamState[Any]) -> bool:
        if not self._timer_is_set and (self._timers or state.has_waiter):
            return True  # no timer would find it
        return perf_counter() >= self._delay_until

    def account_for(self, cost: float) -> None:
        """Set how long items wait after a delivery, by what a crossing has cost (seconds)."""
        # One crossing that was slow by chance says little about the next one.
        usual, self._latest_cost = min(cost, self._latest_cost), cost
        delay = max(min(CROSSING_CAP, usual / CROSSING_SHARE), usual / CROSSING_SHARE_AT_MOST)
        before, self._delay = self._delay, min(delay, MAX_DELAY)
        self._delay_until += self._delay - before

    def sleep_until_due(self) -> None:
        """Block until the budget allows for a crossing."""
        sleep(max(0.0, self._delay_until - perf_counter()))

    # -- on the loop

    @uninterrupted
    def publish(self, *, is_timer: bool = False) -> None:
        """Deliver all that is pending now, and wake the consumers."""
        self._timer_is_set = False  # first: see above
        items = 0
        # What producers add meanwhile is for the next delivery, or the loop could be held forever.
        for _ in range(len(self._waiting)):
            state = self._waiting[0]
            state.is_registered = False
            items += state.publish()
            self._waiting.popleft()  # last: a Ctrl-C can strike before
        now = perf_counter()
        # By the time, too: a consumer that is awake takes items without a delivery.
        is_burst = items > 1 or now < self._delay_until + self._delay
        self._delay_until = now + self._delay
        if self._timers:
            # A timer that finds nothing is the end of a burst.
            self._set_timer() if is_burst and (items or not is_timer) else self._stop_timer()

    def _set_timer(self) -> None:
        seconds = self._delay_until - perf_counter() + max(TIMER_MARGIN, self._delay / 2)
        self._timers[0].scope.deadline = loop_time() + seconds
        self._timer_is_set = True

    def _stop_timer(self) -> None:
        self._timers[0].scope.deadline = math.inf

    async def run_timer_until_cancelled(self) -> None:
        """Deliver whenever the timer ends, if no other task does."""
        timer = _Timer()
        self._timers.append(timer)
        self._set_timer()  # for what was pushed while there was no timer
        try:
            while True:
                with timer.scope:
                    await sleep_forever()
                timer.scope = CancelScope()
                self.publish(is_timer=True)
        finally:
            self._timers.remove(timer)
            if self._timer_is_set and self._timers:
                self._set_timer()

    async def watch_until_turn(self, state: StreamState[Any]) -> None:
        """Cancel a stream that is stopped before its turn has come. One task does it for all."""
        self._queued.append(state)
        try:
            while state.phase is Phase.QUEUED:
                if self._queued[0] is state:
                    self._cancel_stopped()
                    await async_sleep(QUEUE_POLL)
                else:
                    await state.guard_needed.wait()
        finally:
            self._queued.remove(state)
            if self._queued:
                self._queued[0].guard_needed.set()

    def _cancel_stopped(self) -> None:
        for state in self._queued:
            if state.stop_requested:
                state.scope.cancel()


class _Timer:
    """The timer of a task: the deadline of its scope."""

    def __init__(self) -> None:
        self.scope = CancelScope()


_delivery: RunVar[LoopDelivery] = RunVar("anystreamer delivery")


class Crossing:
    """The way of a stream's producer to the loop. Made on the loop, used in threads."""

    def __init__(self, state: StreamState[Any]) -> None:
        self._state = state
        self._delivery = LoopDelivery.of_this_loop()
        # Looked up on the loop: the thread must not need it later.
        self._token: EventLoopToken = current_token()
        self._has_crossed = False
        self._waited_at = -math.inf  # for space in the buffer, until this time (perf_counter)
        self.seconds = 0.0  #: how long crossings have held up the thread

    def deliver(self) -> None:
        """Have the items that were pushed delivered: the first at once, others when it is due."""
        state, delivery = self._state, self._delivery
        if not state.is_registered:
            delivery.register(state)
        if not self._has_crossed:
            self.flush()
        elif not delivery.is_delaying and not (
            # The consumer is awake: before it waits, it takes what is there without a crossing. But
            # its loop can be waiting for the GIL, which a thread hands over at once only when it
            # blocks, as for a crossing and for space.
            state.receiver_waiting is NO_WAITER and perf_counter() - self._waited_at < CROSSING_CAP
        ):
            delivery.cross_in_turn(state, self.flush)

    def note_wait(self) -> None:
        """Note that the thread has waited for space, so that the loop could run meanwhile."""
        self._waited_at = perf_counter()

    def flush(self) -> None:
        """Block until the loop has delivered the items that were pushed.

        Raises:
            RuntimeError: the loop has ended.
        """
        self._has_crossed = True
        self.register()
        started = perf_counter()
        from_thread.run_sync(self._delivery.publish, token=self._token)
        cost = perf_counter() - started
        self.seconds += cost
        self._delivery.account_for(cost)

    def register(self) -> None:
        """Have the next crossing, of this stream or of another, take along what was pushed."""
        self._delivery.register(self._state)


async def guard(state: StreamState[Any], around_thread: CancelScope | None = None) -> None:
    """Do what the producer cannot: deliver, see a stop in the queue, end its calls into the loop.

    It runs in a task of its own and never raises.
    """
    # Shielded: where a scope and a scope around it are both cancelled, anyio 4.16 takes back one
    # cancellation too many in the task of the outer one.
    with suppress(get_cancelled_exc_class()):
        if not (state.closed or state.has_exited):
            with CancelScope(shield=True) as state.guard_scope:
                await _guard_receive(state)
        # Only while it runs: a task that has ended before that might never note that it has exited.
        if around_thread is not None and state.phase is Phase.RUNNING:
            with CancelScope(shield=True) as state.guard_scope:
                while state.phase is Phase.RUNNING:
                    cancel_again(around_thread)
                    await async_sleep(QUEUE_POLL)


async def _guard_receive(state: StreamState[Any]) -> None:
    """While a receive() waits, deliver, and see a stop in the queue."""
    await state.receive_began.wait()
    delivery = LoopDelivery.of_this_loop()
    await delivery.watch_until_turn(state)
    await delivery.run_timer_until_cancelled()
