"""Threads that stay the same for as long as their owner is open, and the functions they call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import Any

from .._bridge import run_sync_joined, track_active_thread

__all__ = ["WorkItem", "WorkThreads"]


class WorkThreads:
    """Calls functions in a fixed number of threads, in order: those that run `work`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._items: SimpleQueue[WorkItem | None] = SimpleQueue()

    def work(self) -> None:
        """Call what comes, until `end`. In one of the threads."""
        while (item := self._items.get()) is not None:
            item.run()
            del item  # or a stream would live until the next one

    def end(self) -> None:
        """Have each thread return, after what has been put before. On the loop."""
        for _ in range(self.count):
            self._items.put(None)

    async def call(self, item: WorkItem, when_cancelled: Callable[[], None]) -> None:
        """Have a thread call a function. Does not return before the function has.

        Not after `end`. *when_cancelled* is called after a native cancellation.
        """
        self._items.put(item)
        # Not awaited by an event: a Ctrl-C can strike the code that would set it.
        await run_sync_joined(item.wait, when_cancelled=when_cancelled, is_tracked=False)


class WorkItem:
    """A function for one of the threads to call, and a way for another thread to wait for it."""

    def __init__(self, context: Context, func: Callable[..., object], *args: Any) -> None:
        self._context = context
        self._call = func, *args
        self._is_over = threading.Event()

    def run(self) -> None:
        """Call it. It must not raise."""
        try:
            self._context.run(track_active_thread, *self._call)
        finally:
            self._is_over.set()

    def wait(self) -> None:
        """Wait until it has returned."""
        self._is_over.wait()
