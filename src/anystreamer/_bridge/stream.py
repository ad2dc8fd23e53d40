"""The bridge: a blocking producer in a worker thread becomes a stream, and a stop flag reaches it.

Nothing here knows of models. Two objects share the work, and each has its thread:

- `ThreadStream` lives on the event loop. Consumers hold it.
- `Producer` lives in the worker thread. It is the ``emit`` and ``should_stop`` of a producer.

The threads meet in three places only: the deque of emitted items (the worker appends, the loop
pops), the plain attributes that ask the worker to stop (anyone sets them, the worker reads them),
and the outcome (the worker sets it, the loop reads it once the worker has left).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import suppress
from time import perf_counter
from typing import Any, Generic, TypeVar

from anyio import (
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    WouldBlock,
    create_memory_object_stream,
    get_cancelled_exc_class,
    sleep,
)
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import (
    checkpoint,
    checkpoint_if_cancelled,
)

from .._errors import raise_preserving_context
from .join import SafeEvent

__all__ = ["ThreadStream"]

T = TypeVar("T")

# A producer that stalls after emitting cannot bring over what it still holds, so it is fetched for
# a waiting receive() after this time (seconds) at the latest. Each look wakes the loop beside the
# worker, which costs as much as a crossing: every 4 ms they took 4 to 8 % of a small model's time.
HOLDING_GUARD = 0.02

# stop() only sets an attribute, because that alone is safe in a signal handler. While a worker's
# turn has not come, somebody has to look at it this often (seconds).
QUEUE_POLL = 0.05


# Setting it wakes nobody.
NO_WAITER = SafeEvent()


class ThreadStream(ObjectReceiveStream[T], Generic[T]):
    """What a blocking producer emits, as an `anyio.abc.ObjectReceiveStream`. The loop's side.

    Made by `stream_from_thread` and `stream_iterable`. Iterate over it, or call `receive`.
    """

    def __init__(self, max_buffer_size: float = math.inf) -> None:
        self._send, self._receive = create_memory_object_stream[T](math.inf)
        self._held: deque[T] = deque()  # emitted, and not yet in the memory object stream
        self._buffered = 0  # items in the memory object stream
        self._guard_at = 0.0  # when what is held is fetched for a waiting receive() (perf_counter)
        self._ready: Event | SafeEvent = NO_WAITER  # of the receive() that waits
        self._waits = SafeEvent()  # set when a receive() begins to wait
        self._watch_scope = CancelScope(shield=True)
        self._left = (
            SafeEvent()
        )  # set once the worker has left the producer, or will never enter it
        self._scope = CancelScope()  # around the worker's turn and its wait for it
        self._turn_at: float | None = None  # when its turn came (perf_counter)
        self._left_at: float | None = None  # when it was seen to have left
        self._stopped = False  # asked by stop(): what has been made is still wanted
        self._cancelled = False  # asked by a scope, aclose() or the block's end: nobody will read
        self._error: BaseException | None = None
        self._error_raised = False
        self._result: Any = None
        self._receiving = False
        self._closed = False
        self._max_buffer_size = max_buffer_size
        # Set when a consumer has taken something: for whoever waits for room.
        self._space_available: threading.Event | SafeEvent = NO_WAITER
        self._number = 0  # in the log

    # -- for consumers

    async def receive(self) -> T:
        """Return the next item. Always a checkpoint; a cancelled call loses no item.

        Raises:
            anyio.EndOfStream: the producer has returned, or was stopped, and all has been received.
            anyio.ClosedResourceError: the stream was closed, or its block left.
            anyio.BusyResourceError: another task is receiving.
            BaseException: what the producer raised, after all that it emitted before.
        """
        if self._receiving:
            raise BusyResourceError("receiving from")
        self._receiving = True
        try:
            # Checkpoint first, then take: nothing can be lost between the two. Waiting is a
            # checkpoint.
            if self._is_ready() or self._closed or self._left.is_set():
                await checkpoint()
            else:
                await checkpoint_if_cancelled()
                await self._wait()
            while not self._closed:
                self._fetch()
                try:
                    return self._take()
                except WouldBlock:
                    pass
                except EndOfStream:
                    break
                await self._wait()
            # Where a scope ended the stream, the end must not be seen before the cancellation.
            if self._cancelled and not self._closed:
                await checkpoint()
        finally:
            self._receiving = False
        if self._closed:
            raise ClosedResourceError
        self._conclude()
        if self._error is not None:
            self._error_raised = True
            raise_preserving_context(self._error)
        raise EndOfStream

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except EndOfStream:
            pass
        raise StopAsyncIteration

    def stop(self) -> None:
        """Ask the producer to end after the current step; what it has made can still be received.

        Safe from any task or thread and from a signal handler; calling it again changes nothing.
        """
        self._stopped = True

    async def aclose(self) -> None:
        """Stop the producer, drop what was not received, and wait until the worker has left it."""
        self._close()
        await self._left.wait()
        self._conclude()

    def __repr__(self) -> str:
        if self._closed:
            state = "closed"
        elif self._left.is_set():
            state = "ended"
        else:
            state = "waiting for its turn" if self._turn_at is None else "running"
        return f"<anystreamer.{type(self).__name__} {state}>"

    # -- for subclasses

    def _take(self) -> T:
        """Take the next item without waiting. Raises WouldBlock or EndOfStream."""
        item = self._receive.receive_nowait()
        self._buffered -= 1
        if self._max_buffer_size != math.inf:
            self._space_available.set()
        return item

    def _is_ready(self) -> bool:
        """Whether there is an item to take."""
        return bool(self._held or self._buffered)

    def _is_full(self) -> bool:
        """Whether as many items wait as may."""
        return len(self._held) + self._buffered >= self._max_buffer_size

    def _conclude(self) -> None:
        """Called on the loop when the worker has left and the consumer has the end, or has gone."""

    def _progress(self) -> tuple[str, int, int]:
        """Its state, and how many tokens have been computed and delivered; for any thread."""
        if self._left.is_set():
            return "ended", 0, 0
        return "waiting" if self._turn_at is None else "running", 0, 0

    def _summary(self) -> str:
        """How it ended, in words, for the log."""
        if self._error is not None:
            return repr(self._error)
        if self._turn_at is None:
            return "its turn had not come"
        return "stopped" if self._stopped else "cancelled" if self._cancelled else "all was made"

    # -- for the other two, always on the loop

    def _deliver(self) -> float:
        """A crossing of the worker's: fetch what it has emitted, and return the time."""
        self._fetch()
        self._ready.set()
        now = perf_counter()
        self._guard_at = now + HOLDING_GUARD
        return now

    def _fetch(self) -> None:
        """Move what the worker has emitted into the memory object stream."""
        held = self._held
        if self._closed or self._left.is_set():
            held.clear()
        while held:
            self._send.send_nowait(held.popleft())
            self._buffered += 1

    def _finish(self) -> None:
        """The worker has left the producer, or will never enter it."""
        self._left_at = self._deliver()
        self._send.close()
        self._left.set()
        self._watch_scope.cancel()

    def _abandon(self) -> None:
        """Nobody will read any more: tell the worker."""
        self._cancelled = True

    def _close(self, *, is_cancelled: bool = False) -> None:
        """Nobody will read any more: stop the worker, or keep it from starting; drop what comes.

        *is_cancelled* says that its host is about to be cancelled anyway.
        """
        if not self._left.is_set():
            self._abandon()
            if not is_cancelled:
                self._scope.cancel()
        self._closed = True
        self._watch_scope.cancel()
        self._ready.set()
        self._space_available.set()  # who waits for room need not wait any longer

    def _release(self) -> BaseException | None:
        """End the stream for good, after the worker. Returns an error that nobody has seen yet."""
        self._conclude()
        self._send.close()
        self._receive.close()
        # The traceback of the error leads back to this stream: do not leave a cycle behind.
        error, self._error = self._error, None
        return None if self._error_raised else error

    async def _wait(self) -> None:
        # As a `SafeEvent` is waited for, with less between: this happens for each item.
        event = Event()
        self._ready = event
        self._waits.set()
        try:
            await event.wait()
        finally:
            self._ready = NO_WAITER

    async def _watch(self) -> None:
        """While a receive() waits, see to what the worker cannot bring over or see by itself.

        In a task of its own, which never raises. A deadline around the waiting would do the same,
        but up to anyio 4.15 it swallows a native cancellation that comes in the same tick.
        """
        # Shielded: where a scope and one around it are both cancelled, anyio 4.16 takes back one
        # cancellation too many in the task of the outer one.
        with suppress(get_cancelled_exc_class()), self._watch_scope:
            while True:
                await self._waits.wait()
                self._waits = SafeEvent()
                while self._turn_at is None:
                    if self._stopped:
                        self._scope.cancel()
                    await sleep(QUEUE_POLL)
                while (nap := self._guard_at - perf_counter()) > 0:
                    await sleep(nap)
                if self._held:
                    self._fetch()
                    self._ready.set()
