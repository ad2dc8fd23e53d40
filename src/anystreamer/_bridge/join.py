"""Waiting that neither a native cancellation nor a Ctrl-C can spoil: for a flag, for a thread."""

import threading
from collections.abc import Callable
from typing import Any

from anyio import CancelScope, CapacityLimiter, Event, get_cancelled_exc_class, sleep, to_thread
from anyio.lowlevel import checkpoint

# After a native cancellation, the worker's end is looked for this often (seconds).
JOIN_POLL = 0.005

#: The idents of worker threads that are in a call of `run_sync_joined`. A set's methods are atomic.
active_threads: set[int] = set()


class SafeEvent:
    """An event that can be waited for where a KeyboardInterrupt may strike.

    One that strikes in `trio.Event.wait` leaves the task on the event's list, and `set` then wakes
    it wherever it waits by that time, which ends the run with a TrioInternalError. So each wait has
    an event of its own, that is forgotten when the wait is left.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._waits: list[Event] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for event in self._waits:
            event.set()

    async def wait(self) -> None:
        if self._is_set:
            await checkpoint()
            return
        event = Event()
        self._waits.append(event)
        try:
            await event.wait()
        finally:
            self._waits.remove(event)


def track_active_thread(func: Callable[..., object], *args: Any) -> None:
    """Call *func* with this thread among `active_threads`."""
    active_threads.add(threading.get_ident())
    try:
        func(*args)
    finally:
        active_threads.discard(threading.get_ident())


async def run_sync_joined(
    func: Callable[..., object],
    *args: Any,
    when_cancelled: Callable[[], None] = lambda: None,
    is_tracked: bool = True,
) -> None:
    """Call *func* in a worker thread, and do not return before the thread has left it.

    The thread is one of `active_threads`, unless *is_tracked* is false.

    *when_cancelled* tells it to come out after a native cancellation, which it cannot see by
    itself: a loop that ends cancels each task, and there may be nobody else to tell it.

    A native cancellation on asyncio breaks the shield of `to_thread.run_sync`. If it comes before
    the thread has taken the call, the call never runs; who takes the ticket decides which it was.
    If it comes later, nobody tells us any more when the thread comes out, and we have to look. (The
    thread must not tell: a Ctrl-C that strikes its message on the loop leaves it waiting for ever.)
    """
    tickets = [None]
    has_left = False

    def has_taken_ticket() -> bool:
        try:
            tickets.pop()
        except IndexError:
            return False
        return True

    def call() -> None:
        nonlocal has_left
        if has_taken_ticket():
            try:
                if is_tracked:
                    track_active_thread(func, *args)
                else:
                    func(*args)
            finally:
                has_left = True

    interrupt: BaseException | None = None
    cancellation = get_cancelled_exc_class()
    try:
        await to_thread.run_sync(call, limiter=CapacityLimiter(1))
    finally:
        if not has_taken_ticket():
            if not has_left:
                when_cancelled()
            with CancelScope(shield=True):
                while not has_left:
                    try:
                        await sleep(JOIN_POLL)
                    except cancellation:  # native again: the first one will be raised
                        pass
                    except BaseException as exc:
                        interrupt = exc
    if interrupt is not None:
        raise interrupt
