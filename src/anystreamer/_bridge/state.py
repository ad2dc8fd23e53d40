"""What the threads of a stream share, and the rules for it. The theory of operation is here.

A stream has a producer, which makes items in a thread of its own, and a consumer in an event loop.
A *worker task* in that loop starts the producer, and ends after it. All of them share one
`StreamState`, through two halves: producers push and publish through a `Sink`, the consumer
receives through a `ThreadStream`.

An item's way: the producer's thread appends it to `pending`. The loop moves it from there into an
anyio memory object stream (`Sink.publish`), when the producer's thread crosses over to it, or when
a guard on the loop looks because the producer is silent (`delivery.py`). The consumer takes it out
of the memory object stream.

Who writes what:

- `pending`: the producer appends, the loop pops. Both are atomic.
- `stop_requested`, `abandoned`: anybody, from any thread, a finalizer or a signal handler. They
  only ever change from False to True. The producer polls them; nothing else tells it to stop.
- `error`, `result`: the producer, before its worker has exited. Others may set an error, too: the
  first one counts.
- `space_available`: the producer makes one and waits for it; the loop sets it.
- everything else: the loop alone.

Invariants:

1. `phase` only advances, and only on the loop: QUEUED -> RUNNING -> EXITED, or QUEUED -> EXITED.
2. After EXITED nothing is added: what a late producer pushes is dropped.
3. Items are received in the order in which they were pushed, all of them, unless `abandoned` or
   `closed`: then nobody reads, and the rest is dropped.
4. The consumer sees an end, or the error, after the last item, and after `finalize`.
5. The producer appends before it reads the clock, and the guard looks at `guard_at` or later: no
   item stays in `pending` while a receive() waits, longer than the guard's time.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from enum import IntEnum
from time import perf_counter
from typing import Any, Generic, TypeVar

from anyio import CancelScope, Event, create_memory_object_stream

from .join import SafeEvent

__all__ = ["Phase", "StreamState"]

T = TypeVar("T")

# A producer that stalls after emitting cannot bring over what it still holds, so it is fetched for
# a waiting receive() after this time (seconds) at the latest. Each look wakes the loop beside the
# worker, which costs as much as a crossing: every 4 ms they took 4 to 8 % of a small model's time.
HOLDING_GUARD = 0.02

# Setting it wakes nobody.
NO_WAITER = SafeEvent()


class Phase(IntEnum):
    """How far a worker has come."""

    QUEUED = 0  # it waits for its turn
    RUNNING = 1
    EXITED = 2  # it has left its producer, or will never enter it


class StreamState(Generic[T]):
    """The state of one stream. See above for who may write what."""

    def __init__(self, max_buffer_size: float = math.inf) -> None:
        self.max_buffer_size = max_buffer_size
        self.pending: deque[T] = deque()  # pushed, and not yet in the memory object stream
        self.stop_requested = False  # what has been made is still wanted
        self.abandoned = False  # nobody will read: a scope, aclose(), or the end of the block
        self.error: BaseException | None = None
        self.result: Any = None
        self.space_available: threading.Event | SafeEvent = NO_WAITER

        self.phase = Phase.QUEUED
        self.started_at: float | None = None  # perf_counter, as all times here
        self.exited_at: float | None = None
        self.worker_exited = SafeEvent()
        self.scope = CancelScope()  # around the worker's turn and its wait for it
        self.closed = False
        self.error_raised = False
        self.buffer_send, self.buffer_receive = create_memory_object_stream[T](math.inf)
        self.buffered = 0  # items in the memory object stream
        self.receiver_waiting: Event | SafeEvent = NO_WAITER
        self.receive_began = SafeEvent()  # set when a receive() begins to wait
        self.guard_at = 0.0  # when `pending` is looked at for a waiting receive()
        self.guard_scope: CancelScope | None = None  # of the guard, while it runs
        self.number = 0  # in the log

    # -- from any thread

    @property
    def should_end(self) -> bool:
        """Whether the producer is to end."""
        return self.stop_requested or self.abandoned

    @property
    def has_exited(self) -> bool:
        """Whether the worker has left its producer, or will never enter it."""
        return self.phase is Phase.EXITED

    def abandon(self) -> None:
        """Nobody will read any more: tell the producer, unless it has ended."""
        if not self.has_exited:
            self.abandoned = True

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, after its items. The first error counts."""
        if self.error is None:
            self.error = error

    @property
    def is_full(self) -> bool:
        """Whether as many items wait for the consumer as may."""
        return len(self.pending) + self.buffered >= self.max_buffer_size

    def progress(self) -> tuple[int, int]:
        """How many tokens have been computed, and delivered."""
        return 0, 0

    # -- on the loop: phases

    def start(self) -> None:
        """The worker's turn has come."""
        self.phase = Phase.RUNNING
        self.started_at = perf_counter()

    def exit(self) -> None:
        """The worker has left its producer, or will never enter it."""
        self.exited_at = self.publish()
        self.phase = Phase.EXITED
        self.buffer_send.close()
        self.worker_exited.set()
        self._end_guard()

    # -- on the loop: the way to the consumer

    def publish(self) -> float:
        """Hand what is pending to the consumer, and wake it. Returns the time."""
        self.drain_pending()
        self.receiver_waiting.set()
        now = perf_counter()
        self.guard_at = now + HOLDING_GUARD
        return now

    def drain_pending(self) -> None:
        """Move what is pending into the memory object stream, or drop it if nobody reads."""
        pending = self.pending
        if self.closed or self.has_exited:
            pending.clear()
        while pending:
            self.buffer_send.send_nowait(pending.popleft())
            self.buffered += 1

    @property
    def has_item(self) -> bool:
        """Whether there is an item to take, once what is pending has been drained."""
        return bool(self.pending or self.buffered)

    def take(self) -> T:
        """Take the next item out of the memory object stream. Raises WouldBlock or EndOfStream."""
        item = self.buffer_receive.receive_nowait()
        self.buffered -= 1
        if self.max_buffer_size != math.inf:
            self.space_available.set()
        return item

    # -- on the loop: the end

    def close(self, *, cancel_worker: bool = True) -> None:
        """Nobody will read any more: stop the worker, or keep it from starting; drop what comes.

        *cancel_worker* is false where something else is about to cancel its task.
        """
        if not self.has_exited:
            self.abandoned = True
            if cancel_worker:
                self.scope.cancel()
        self.closed = True
        self._end_guard()
        self.receiver_waiting.set()
        self.space_available.set()  # who waits for space need not wait any longer

    def _end_guard(self) -> None:
        if self.guard_scope is not None:
            self.guard_scope.cancel()

    def finalize(self) -> None:
        """Decide how it ended: called once the worker has exited. Again, it changes nothing."""

    def close_and_take_error(self) -> BaseException | None:
        """End the stream for good, after the worker. Returns an error that nobody has seen yet."""
        self.finalize()
        self.buffer_send.close()
        self.buffer_receive.close()
        # The traceback of the error leads back to this state: do not leave a cycle behind.
        error, self.error = self.error, None
        return None if self.error_raised else error

    def summary(self) -> str:
        """How it ended, in words, for the log."""
        if self.error is not None:
            return repr(self.error)
        if self.started_at is None:
            return "its turn had not come"
        if self.stop_requested:
            return "stopped"
        return "cancelled" if self.abandoned else "all was made"
