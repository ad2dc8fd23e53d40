"""Threads that stay the same for as long as their owner is open, and the functions they call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import Any

from anyio import CancelScope, get_cancelled_exc_class

from .._bridge import (
    StreamState,
    TakenOnce,
    check_turn,
    holding,
    run_sync_joined,
    track_active_thread,
)

__all__ = ["WorkItem", "WorkThreads"]


class WorkThreads:
    """Calls functions in a fixed number of threads, in order: those that run `work`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._items: SimpleQueue[WorkItem | None] = SimpleQueue()
        self._idents: set[int] = set()  # of the threads; a set's methods are atomic

    def work(self) -> None:
        """Call what comes, until `end`. In one of the threads."""
        self._idents.add(threading.get_ident())
        with holding(self if self.count == 1 else None):
            while (item := self._items.get()) is not None:
                item.run()
                del item  # or a stream would live until the next one
        self._idents.discard(threading.get_ident())

    @property
    def include_this_one(self) -> bool:
        """Whether the current thread is one of them."""
        return threading.get_ident() in self._idents

    def check_caller(self, kind: str) -> None:
        """Refuse a call that needs a thread, if the only one waits for this call. On the loop.

        Raises:
            RuntimeError
        """
        check_turn(self, f"the only thread of the {kind}")

    def end(self) -> None:
        """Let each thread end after the functions that were put before. On the loop."""
        for _ in range(self.count):
            self._items.put(None)

    async def call(
        self, item: WorkItem, state: StreamState[Any], when_cancelled: Callable[[], None]
    ) -> None:
        """Have a thread call a function. Does not return while the function runs.

        Not after `end`.

        Args:
            item: the function.
            state: of the stream that the function works for.
            when_cancelled: called after a native cancellation.
        """
        try:
            self._items.put(item)
            await _wait(item, when_cancelled)
        finally:
            # A cancellation, or on trio a Ctrl-C, can come before the wait has begun.
            if not item.take():
                await _join(item, state, when_cancelled)


async def _wait(item: WorkItem, when_cancelled: Callable[[], None]) -> None:
    # Not awaited by an event: a Ctrl-C can strike the code that would set it.
    await run_sync_joined(item.wait, when_cancelled=when_cancelled, is_tracked=False)


async def _join(
    item: WorkItem, state: StreamState[Any], when_cancelled: Callable[[], None]
) -> None:
    """Do not return before the thread has left *item*, which it has taken."""
    cancellation = get_cancelled_exc_class()
    interrupt: BaseException | None = None
    while not item.has_returned:
        try:
            state.abandon()
            with CancelScope(shield=True):
                await _wait(item, when_cancelled)
        except cancellation:  # native: the first one will be raised
            pass
        except BaseException as exc:
            interrupt = exc
    if interrupt is not None:
        raise interrupt


class WorkItem(TakenOnce):
    """A function that one of the threads calls, unless it is taken back before.

    Another thread can wait until it has returned.
    """

    def __init__(self, context: Context, func: Callable[..., object], *args: Any) -> None:
        super().__init__()
        self._context = context
        self._call = func, *args
        self._has_returned = threading.Event()

    def run(self) -> None:
        """Call it, unless it was taken back. It must not raise."""
        if self.take():
            try:
                self._context.run(track_active_thread, *self._call)
            finally:
                self._has_returned.set()

    @property
    def has_returned(self) -> bool:
        """Whether a thread has called it, and it has returned."""
        return self._has_returned.is_set()

    def wait(self) -> None:
        """Wait until it has returned."""
        self._has_returned.wait()
