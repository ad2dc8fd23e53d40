"""The thread that delivers the text of drop-in streamers: one for all of an event loop."""

from __future__ import annotations

import queue
import threading
from time import perf_counter
from typing import Any, Protocol

from anyio import CancelScope
from anyio.lowlevel import RunVar, checkpoint

from .._bridge import Crossing, LoopDelivery

__all__ = ["DeliveredQueue", "DeliveryThread"]

# How often the thread checks whether texts can still be ended (seconds).
LIFE_POLL = 0.1

# What a thread has left on the loop can still end its text: a loop runs callbacks in the order in
# which threads gave them to it, so after one crossing it has run those of a thread that has ended,
# and after two (on trio, which shuffles tasks, three) the first step of a task that one started.
CROSSINGS_TO_SETTLE = 3


class DeliveredQueue(Protocol):
    """What the thread needs of a queue. All of it can be called in any thread."""

    crossing: Crossing

    def push(self, item: Any) -> bool:
        """Add an item to what a crossing delivers. Returns whether there is something to deliver.

        There is none where nothing will be read.
        """

    def push_failure(self, error: BaseException) -> None:
        """The same for an error, which the consumer gets in its place among the items."""

    @property
    def is_watched(self) -> bool:
        """Whether its text is open, or has ended in a way that the consumer does not know of."""

    @property
    def producer_is_alive(self) -> bool:
        """Whether the thread that put something last runs."""

    def is_over(self, *, producer_is_alive: bool) -> bool:
        """Whether its text cannot be ended any more, but by what its thread left on the loop."""

    def items_if_over(self, *, producer_is_alive: bool) -> list[Any]:
        """What the consumer gets if the text cannot be ended any more; nothing if it can."""


class DeliveryThread:
    """Crosses to an event loop in place of the threads that generate.

    These can outlive the loop and must not wait for it: a crossing never returns from a loop that
    was closed under it. Then only this thread is stuck, and it is a daemon. There is one for all
    streamers of the loop: it wakes up, and waits for the interpreter, once for all their texts. It
    runs while there is something to deliver, or to watch: a text that may never be ended.
    """

    def __init__(self) -> None:
        self.loop_closed = False  #: the event loop has ended under a generation
        self._delivery = LoopDelivery.of_this_loop()
        self._submitted = queue.SimpleQueue[tuple[DeliveredQueue, Any]]()
        self._check_at = 0.0  # perf_counter
        self._deliveries_begun = self._deliveries_ended = 0
        self._lock = threading.Lock()  # of the following
        self._watched: set[DeliveredQueue] = set()
        self._runs = False

    @staticmethod
    def of_this_loop() -> DeliveryThread:
        """Return the one of the running event loop. It has no thread before it needs one."""
        try:
            return _thread.get()
        except LookupError:
            _thread.set(made := DeliveryThread())
            return made

    # -- from any thread

    def submit(self, to: DeliveredQueue, item: Any) -> None:
        """Deliver an item. Never waits."""
        self._submitted.put((to, item))
        with self._lock:
            self._start()

    def watch(self, watched: DeliveredQueue) -> None:
        """Check whether the text of a queue can still be ended, while its `is_watched` is true."""
        with self._lock:
            self._watched.add(watched)
            self._start()

    def _start(self) -> None:
        if self.loop_closed:
            self._drop()
        elif not self._runs:
            self._runs = True
            threading.Thread(target=self._run, name="anystreamer delivery", daemon=True).start()

    def _drop(self) -> None:
        self._watched.clear()
        while not self._submitted.empty():
            self._submitted.get_nowait()

    # -- on the loop

    async def finish_delivery(self) -> None:
        """Wait for the delivery that is under way.

        A consumer that is awake takes an item before its crossing. If the loop ended just then, the
        thread would wait for it forever.
        """
        begun = self._deliveries_begun
        with CancelScope(shield=True):
            while self._deliveries_ended < begun:
                await checkpoint()

    # -- the thread

    def _run(self) -> None:
        # Without local variables: they would keep what was dropped alive while it waits.
        while self._deliver(self._next_items()):
            self._delivery.sleep_until_due()

    def _deliver(self, items: list[tuple[DeliveredQueue, Any]]) -> bool:
        """Deliver items by one crossing. Returns whether the thread goes on."""
        self._deliveries_begun += 1
        try:
            waiting = list(dict.fromkeys(to for to, item in items if to.push(item)))
            for each in waiting:
                each.crossing.register()
            if waiting:
                self._cross(waiting[0])
        finally:
            self._deliveries_ended += 1
        return bool(items) and not self.loop_closed

    def _cross(self, to: DeliveredQueue) -> None:
        try:
            to.crossing.flush()
        except KeyboardInterrupt as exc:  # it struck the loop just then; trio raises it here
            to.push_failure(exc)
        except RuntimeError:
            with self._lock:
                self.loop_closed = True
                self._drop()

    def _next_items(self) -> list[tuple[DeliveredQueue, Any]]:
        """Wait for items. Returns all that are there; none if the thread is to end."""
        while True:
            items = self._take(self._seconds_until_check())
            if perf_counter() >= self._check_at:
                self._check_at = perf_counter() + LIFE_POLL
                items += self._check_texts()
            if items:
                return items
            with self._lock:
                if not self._watched and self._submitted.empty():
                    self._runs = False
                    return []

    def _seconds_until_check(self) -> float:
        with self._lock:
            self._watched = {each for each in self._watched if each.is_watched}
            return max(0.0, self._check_at - perf_counter()) if self._watched else 0.0

    def _take(self, timeout: float) -> list[tuple[DeliveredQueue, Any]]:
        """Take all that was submitted. If there is nothing, wait for it."""
        items = []
        try:
            items.append(self._submitted.get(timeout=timeout))
            while True:
                items.append(self._submitted.get_nowait())
        except queue.Empty:
            return items

    def _check_texts(self) -> list[tuple[DeliveredQueue, Any]]:
        """Check whether the watched texts can still be ended."""
        with self._lock:
            # First: a thread that has ended puts nothing more, but it can have put something last.
            is_alive = {each: each.producer_is_alive for each in self._watched}
        over = [each for each, alive in is_alive.items() if each.is_over(producer_is_alive=alive)]
        if over:
            for _ in range(CROSSINGS_TO_SETTLE):
                self._cross(over[0])
        items = self._take(0.0)
        for each in set(over) - {to for to, _ in items}:
            new = each.items_if_over(producer_is_alive=is_alive[each])
            items += [(each, item) for item in new]
        return items


_thread: RunVar[DeliveryThread] = RunVar("anystreamer delivery thread")
