"""The state that the threads of a stream share, with its rules. The theory of operation is here.

A stream has a producer and a consumer. The producer makes items in a worker thread. The consumer
receives them in an event loop. A *worker task* in that loop starts the producer and ends after it.
They share one `StreamState`. The producer writes to it through a `Sink` (`sink.py`), the consumer
reads from it through a `ThreadStream` (`stream.py`).

The way of an item:

1. The producer appends it to `pending`, in its own thread.
2. The loop moves it into an anyio memory object stream, in one batch with all that is pending, and
   wakes the consumer. Either a producer makes the loop do that and waits for it (a `Crossing`),
   which need not be the producer of this stream, or a task on the loop does it while the producers
   are silent (`guard`).
3. The consumer takes the batch out of the memory object stream, and the items out of the batch.

Who writes what. There is no lock: each attribute has one writer, or all writes to it are atomic.
This holds without a GIL too.

- `pending`: the producer appends, the loop pops. Both are atomic.
- `pushed`: the producer. `taken`: the loop. Both count items and only grow; their difference is
  how many items the consumer has not got.
- `stop_requested`, `abandoned`: any thread, a finalizer or a signal handler. They change from False
  to True once. The producer polls them; callbacks that it has registered are called after that.
- the error: any thread may append one to a list. The first one counts.
- `result` and `returned_by_itself`: the producer, before its worker exits.
- `is_registered`: a producer sets it, and the loop clears it before it takes the items.
- `space_available`: the producer sets the attribute and waits for the event. The loop sets the
  event, and if a thread waits for it, so does whoever stops the stream.
- `is_held`: the producer, or the loop for one that has no thread. Tests wait for it by `held`.
- all other attributes: the loop.

Invariants:

1. `phase` only advances, and only on the loop: QUEUED -> RUNNING -> EXITED, or QUEUED -> EXITED.
2. After EXITED no item is delivered any more: what a producer pushes too late is dropped.
3. The consumer gets all items in the order in which they were pushed, unless the stream is
   `abandoned` or `closed`: then the rest is dropped, because it will not be read.
4. The consumer sees the end, or the error, after the last item, and after `finalize`.
5. While a receive() waits, an item stays in `pending` only until the loop next looks. `delivery.py`
   says why.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from enum import IntEnum
from time import perf_counter
from typing import Any, Generic, TypeVar
from weakref import finalize

from anyio import (
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    WouldBlock,
    create_memory_object_stream,
)
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .._errors import describe
from .ending import Ending
from .home import Home
from .interrupts import uninterrupted
from .join import SafeEvent, ThreadEvent
from .stop_callbacks import StopCallbacks
from .thread_condition import ThreadCondition

__all__ = ["NO_WAITER", "Phase", "StreamState", "dropped"]

T = TypeVar("T")

# Of streams that were dropped and not left, by number: the tokens computed and delivered. Appending
# takes no lock: the garbage collector can run in any thread, wherever that is.
dropped: deque[tuple[int, tuple[int, int]]] = deque()

# Stands for the event of a waiter where none waits: setting it wakes no task.
NO_WAITER = SafeEvent()


class Phase(IntEnum):
    """How far a worker has come."""

    QUEUED = 0  # it waits for its turn
    RUNNING = 1
    EXITED = 2  # it has left its producer, or will never enter it


class StreamState(Generic[T]):
    """The state of one stream. The text above says which thread may write what."""

    @uninterrupted  # or its memory object stream could stay open
    def __init__(self, max_buffer_size: float = math.inf) -> None:
        self.home: Home = Home(
            "stream", "receive and leave it in its own; stop() and attributes work in any thread"
        )
        self.max_buffer_size: float = max_buffer_size
        # A producer that waits for space continues when only this many items are left: half of the
        # buffer. Waking it for each item would cost more than most items do.
        self._refill_at: float = -1 if max_buffer_size == math.inf else max_buffer_size // 2
        self.pending: deque[T] = deque()  # pushed, and not yet in the memory object stream
        self.pushed: int = 0  # items that the producer has pushed
        self.stop_requested: bool = False  # the items made so far will still be read
        self.abandoned: bool = False  # nothing will be read: a scope, aclose(), the block's end
        self.is_registered: bool = False  # the next delivery of the loop takes its items along
        self._errors: list[BaseException] = []
        self.result: Any = None
        self.returned_by_itself: bool = False  # the producer: no stop had come before
        self.stop_callbacks: StopCallbacks | None = None  # of a producer that runs
        self.space_available: ThreadEvent | SafeEvent = NO_WAITER
        self.is_held: bool = False  # the producer waits for space in the buffer
        self.held: ThreadCondition | None = None  # once a task has waited for that

        self.phase: Phase = Phase.QUEUED
        self.started_at: float | None = None  # perf_counter, as all times here
        self.exited_at: float | None = None
        self.worker_exited: SafeEvent = SafeEvent()
        self.scope: CancelScope = CancelScope()  # around the worker's turn and its wait for it
        self.closed: bool = False
        self.error_raised: bool = False  # the consumer has seen the error
        self.buffer_send: MemoryObjectSendStream[deque[T]]
        self.buffer_receive: MemoryObjectReceiveStream[deque[T]]
        self.buffer_send, self.buffer_receive = create_memory_object_stream[deque[T]](math.inf)
        # The garbage collector may reach the memory object stream before what closes it (a block, a
        # streamer), and would warn. So they are kept apart.
        finalize(self, _close, self.buffer_send, self.buffer_receive).atexit = False
        self._batch: deque[T] = deque()  # what is left of the batch that was taken out last
        self.buffered: int = 0  # items in the memory object stream, and in this batch
        self.taken: int = 0  # items that the consumer has got, or that were dropped instead
        self.receiver_waiting: Event | SafeEvent = NO_WAITER
        self.receive_began: SafeEvent = SafeEvent()  # set when a receive() begins to wait
        self.guard_needed: SafeEvent = SafeEvent()  # its turn has come, or it is first in the queue
        self.guard_scope: CancelScope | None = None  # of the guard, while it runs
        self.ending: Ending | None = None  # until the end
        self.name: str = ""  # in the log
        self.number: int = 0  # the same
        self.totals_recorded: bool = True  # in the statistics, or it was never open

    # -- from any thread

    @property
    def should_end(self) -> bool:
        """Whether the producer should end."""
        return self.stop_requested or self.abandoned

    @property
    def has_exited(self) -> bool:
        """Whether the worker has left its producer, or will never enter it."""
        return self.phase is Phase.EXITED

    def request_stop(self) -> None:
        """Tell the producer to end. What it has made will still be read."""
        self.stop_requested = True
        self._interrupt_producer()

    def abandon(self) -> None:
        """Tell the producer that nothing will be read any more, unless it has ended."""
        if not self.has_exited:
            self.abandoned = True
            self._interrupt_producer()

    def abandon_in_finalizer(self) -> None:
        """The same without the callbacks, which `call_stop_callbacks` has to call later.

        The garbage collector can run while its thread holds a lock that a callback needs.
        """
        if not self.has_exited:
            self.abandoned = True
            self._end_wait_for_space()

    def _interrupt_producer(self) -> None:
        """End its wait for space, and whatever it has registered callbacks for."""
        self._end_wait_for_space()
        self.call_stop_callbacks()

    def _end_wait_for_space(self) -> None:
        if isinstance(self.space_available, ThreadEvent):  # others can be set on the loop only
            self.space_available.set()

    def call_stop_callbacks(self) -> None:
        """Call what the producer has registered, unless that has been called."""
        if self.stop_callbacks is not None:
            self.stop_callbacks.call()

    def abandon_and_cancel(self) -> None:
        """`abandon`, and cancel what the producer awaits by `from_thread.run`. On the loop."""
        self.abandon()
        self.scope.cancel()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, after its items. The first error counts."""
        self._errors.append(error)

    @property
    def error(self) -> BaseException | None:
        """The error that ends the stream."""
        return next(iter(self._errors), None)

    @property
    def is_full(self) -> bool:
        """Whether `max_buffer_size` items wait for the consumer."""
        return self.pushed - self.taken >= self.max_buffer_size

    @property
    def label(self) -> str:
        """What it is called in the log, and by debuggers."""
        return f"{self.name} #{self.number}"

    def progress(self) -> tuple[int, int]:
        """Return how many tokens have been computed, and how many delivered."""
        return 0, 0

    # -- from the producer's thread

    def push(self, *items: T) -> None:
        """Add items, unless the stream is abandoned."""
        if not self.abandoned:
            self.pushed += len(items)  # before they can be taken
            self.pending.extend(items)

    def hold(self) -> None:
        """Note that the producer begins to wait for space in the buffer."""
        self.is_held = True
        if self.held is not None:
            self.held.notify()

    # -- on the loop: phases

    def start(self) -> None:
        """Begin the worker's turn."""
        self.phase = Phase.RUNNING
        self.started_at = perf_counter()
        self.guard_needed.set()

    def exit(self) -> None:
        """Note that the worker has left its producer, or will never enter it."""
        self.publish()
        self.exited_at = perf_counter()
        self.phase = Phase.EXITED
        self.buffer_send.close()
        self.worker_exited.set()
        if self.held is not None:
            self.held.notify()
        self._end_guard()

    # -- on the loop: the way to the consumer

    def publish(self) -> int:
        """Deliver the pending items and wake the consumer. Returns how many items there were."""
        items = self.drain_pending()
        self.receiver_waiting.set()
        return items

    @uninterrupted  # or it would lose items
    def drain_pending(self) -> int:
        """Move the pending items into the memory object stream, or drop them if none is read.

        Returns how many were moved: those that are there now, and not what is pushed meanwhile.
        """
        pending = self.pending
        if self.closed or self.has_exited:
            pending.clear()
        if count := len(pending):
            # Sent before it is filled: on trio a Ctrl-C can strike between any two steps here.
            self.buffer_send.send_nowait(batch := deque[T]())
            for _ in range(count):
                batch.append(pending.popleft())
            self.buffered += count
        return count

    @property
    def has_waiter(self) -> bool:
        """Whether a receive() waits."""
        return self.receiver_waiting is not NO_WAITER

    @property
    def has_item(self) -> bool:
        """Whether there is an item to take, once the pending ones have been drained."""
        return bool(self.pending or self.buffered)

    @uninterrupted
    def take(self) -> T:
        """Take the next item for the consumer. Raises WouldBlock or EndOfStream."""
        # `take_buffered` and `count_taken(1)` in fewer steps, because this happens for each item.
        while not self._batch:
            self._batch = self.buffer_receive.receive_nowait()
        self.buffered -= 1
        self.taken += 1
        if self.pushed - self.taken == self._refill_at or self.stop_requested:
            self.space_available.set()
        return self._batch.popleft()

    @uninterrupted
    def take_many(self, limit: float) -> list[T]:
        """Take what `take` would in several calls: all that has been drained, or *limit* of it."""
        items = [self.take()]
        if self.has_item:  # mostly there is no other, and to find that out by `take` is slower
            with suppress(WouldBlock, EndOfStream):
                while len(items) < limit:
                    items.append(self.take())
        return items

    def take_buffered(self) -> T:
        """Take the next item out of the memory object stream, and do not count it yet."""
        while not self._batch:
            self._batch = self.buffer_receive.receive_nowait()
        self.buffered -= 1
        return self._batch.popleft()

    def count_taken(self, count: int) -> None:
        """Count items that the consumer gets now, which makes space for others."""
        self.taken += count
        left = self.pushed - self.taken
        if left <= self._refill_at < left + count or self.stop_requested:
            self.space_available.set()

    async def wait_until_held(self) -> None:
        """Wait until the producer waits for space that nothing has made yet, or has exited."""
        if self.held is None:
            self.held = ThreadCondition()
        await self.held.wait_for(lambda: (self.is_held and self.is_full) or self.has_exited)

    # -- on the loop: the end

    def close(self, *, cancel_worker: bool = True) -> None:
        """Stop the worker, or keep it from starting, and drop its items: none will be read.

        *cancel_worker* is false where something else is about to cancel the worker's task.
        """
        if not self.has_exited:
            self.abandon()
            if cancel_worker:
                self.scope.cancel()
        if not self.closed:
            self.closed = True
            self._end_guard()  # the part for receive(); then it ends calls into the loop
        self.receiver_waiting.set()
        self.space_available.set()  # a producer that waits for space need not wait any longer

    def _end_guard(self) -> None:
        if self.guard_scope is not None:
            self.guard_scope.cancel()

    def finalize(self) -> None:
        """Decide how the stream ended. Called after the worker has exited, once or more often.

        The first call decides.
        """
        if self.ending is None:
            self.ending = self.decide_ending()

    def decide_ending(self) -> Ending:
        """Decide how the stream ended, where several endings meet."""
        if self.error is not None:
            return Ending.FAILED
        if self.returned_by_itself and self.pushed == self.taken:
            return Ending.ENDED
        return Ending.STOPPED if self.stop_requested else Ending.CANCELLED

    def drop_items(self) -> None:
        """Drop all items that were not received. After the worker, and after `finalize`."""
        self.pending.clear()
        with suppress(WouldBlock, EndOfStream, ClosedResourceError):
            while True:
                self.take_buffered()
        self.buffered = 0

    def close_and_take_error(self) -> BaseException | None:
        """End the stream for good, after the worker. Returns an error that was not raised yet."""
        self.finalize()
        self.buffer_send.close()
        self.drop_items()
        self.buffer_receive.close()
        error = self.error
        self._errors.clear()  # their tracebacks lead back to this state: leave no cycle behind
        return None if self.error_raised else error

    def __del__(self) -> None:
        if not getattr(self, "totals_recorded", True):
            dropped.append((self.number, self.progress()))

    def summary(self) -> str:
        """Describe how the stream ended, for the log."""
        if self.error is not None:
            return describe(self.error)
        if self.started_at is None:
            return "its turn had not come"
        if self.stop_requested:
            return "stopped"
        return "cancelled" if self.abandoned else "all was made"


@uninterrupted
def _close(*streams: MemoryObjectSendStream[Any] | MemoryObjectReceiveStream[Any]) -> None:
    for stream in streams:
        stream.close()
