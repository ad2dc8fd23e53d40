"""Waiting that neither a native cancellation nor a Ctrl-C can break: for an event, for a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from anyio import CancelScope, CapacityLimiter, Event, get_cancelled_exc_class, sleep, to_thread
from anyio.lowlevel import checkpoint

from .._errors import wrap_control_flow_exception
from .idle_threads import end_idle_threads_at_exit
from .interrupts import uninterrupted

__all__ = [
    "JOIN_POLL",
    "SafeEvent",
    "TakenOnce",
    "ThreadEvent",
    "active_threads",
    "cancel_again",
    "run_sync_joined",
    "track_active_thread",
]

# After a native cancellation, this is how often we check whether the thread has left (seconds).
JOIN_POLL = 0.005

#: The idents of worker threads that are in a call of `run_sync_joined`. A set's methods are atomic.
active_threads: set[int] = set()

end_idle_threads_at_exit()


class SafeEvent:
    """An event that can be waited for where a KeyboardInterrupt can strike.

    One that strikes in `trio.Event.wait` leaves the task on the event's list. `set` then wakes the
    task wherever it waits by that time, which ends the run with a TrioInternalError. So each wait
    here has an event of its own, which is forgotten when the wait ends.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._waits: list[Event] = []

    def is_set(self) -> bool:
        return self._is_set

    @uninterrupted
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


class ThreadEvent:
    """An event that the loop sets, and that one thread waits for. As `threading.Event`.

    A Ctrl-C in `threading.Event.set` can leave the lock of the event locked: the next `set` then
    blocks the loop forever. A bare lock has no such place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        with suppress(RuntimeError):  # it is set
            self._lock.release()

    def clear(self) -> None:
        self._lock.acquire(blocking=False)

    def wait(self, seconds: float = -1) -> None:
        """Block until it is set, for this many seconds at most."""
        if self._lock.acquire(timeout=seconds):
            self.set()


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
    within: CancelScope | None = None,
    is_tracked: bool = True,
) -> None:
    """Call *func* in a worker thread, and do not return before the thread has left it.

    A native cancellation on asyncio breaks the shield of `to_thread.run_sync`. If it comes before
    the thread has taken the call, the call never runs. If it comes later, nothing reports when the
    thread leaves, so we have to look. (The thread must not report it: a Ctrl-C that strikes its
    message on the loop would leave the thread waiting forever.)

    Args:
        when_cancelled: called after a native cancellation, to make *func* return. *func* cannot see
            that cancellation by itself, and where a loop that ends cancels all tasks, no other task
            may be left to stop it.
        within: a new scope around the thread, for `cancel_again`. It must not be cancelled itself.
        is_tracked: count the thread among `active_threads`.

    Raises:
        BaseException: what *func* raised. See `wrap_control_flow_exception` for the exceptions that
            are wrapped.
    """
    call = _Call(partial(track_active_thread, func, *args) if is_tracked else partial(func, *args))
    interrupt: BaseException | None = None
    with CancelScope() if within is None else within as around:
        try:
            await to_thread.run_sync(call.run, limiter=CapacityLimiter(1))
        finally:
            if not call.take():
                try:
                    if not call.has_returned:
                        when_cancelled()
                finally:  # it can raise a KeyboardInterrupt, too
                    interrupt = await call.join(around)
    error, call.error = call.error, None
    if interrupt is not None:
        raise interrupt
    if error is not None:
        try:
            raise wrap_control_flow_exception(error, get_cancelled_exc_class())
        finally:
            del error  # its traceback leads here


def cancel_again(scope: CancelScope) -> None:
    """Cancel what a thread has begun to await within *scope* since a scope around it was cancelled.

    On asyncio, anyio cancels the tasks that it finds in a scope at that time, and on until they
    end. It does not cancel a call of `anyio.from_thread.run` that begins after the last of them has
    ended. An end of a shield makes anyio look again. (On trio this changes nothing.)
    """
    scope.shield = True
    scope.shield = False


class TakenOnce:
    """Something that one of several threads gets: the first one that takes it.

    It has no lock, which a Ctrl-C could leave locked.
    """

    def __init__(self) -> None:
        self._item = [None]

    def take(self) -> bool:
        """Take it, for this thread alone. Returns whether it was there. ``pop`` is atomic."""
        try:
            self._item.pop()
        except IndexError:
            return False
        return True


class _Call(TakenOnce):
    """A call of a function that either one worker thread makes, or no thread does.

    No thread makes it if the loop takes it first.
    """

    def __init__(self, func: Callable[[], object]) -> None:
        super().__init__()
        self._func = func
        self.has_returned = False  # the thread has returned from the function
        self.error: BaseException | None = None  # what the function raised

    def run(self) -> None:
        """Make the call, unless the loop has taken it. In the worker thread."""
        if self.take():
            try:
                self._func()
            except BaseException as exc:  # not passed through the loop, which could change it
                self.error = exc
            finally:
                self.has_returned = True

    async def join(self, around: CancelScope) -> BaseException | None:
        """Wait until the thread has left the function. Returns a Ctrl-C that came meanwhile."""
        cancellation = get_cancelled_exc_class()
        interrupt: BaseException | None = None
        with CancelScope(shield=True):
            while not self.has_returned:
                cancel_again(around)
                try:
                    await sleep(JOIN_POLL)
                except cancellation:  # native again: the first one will be raised
                    pass
                except BaseException as exc:
                    interrupt = exc
        return interrupt
