"""At the interpreter's exit: end anyio's idle worker threads of asyncio loops that have ended.

anyio ends them when the main task of their loop has ended. If a Ctrl-C ends the loop before that,
or strikes while a thread is being started, they wait for work forever, and the interpreter waits
for them. This is true for each program that uses `anyio.to_thread` on asyncio. The threads of trio
are daemons.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["end_idle_threads_at_exit"]

WORKER_NAME = "AnyIO worker thread"

# A thread holds the lock of a worker's queue for microseconds. After this time (seconds) none does.
LOCKED = 0.1


def end_idle_threads() -> None:
    """Have each worker thread of a loop that does not run end, as soon as it is idle.

    Called in the main thread.
    """
    for thread in threading.enumerate():
        worker: Any = thread
        if thread.name == WORKER_NAME and hasattr(thread, "loop") and not _runs(worker.loop):
            _unlock(worker.queue.mutex)
            worker.stop()


def _runs(loop: Any) -> bool:
    # A Ctrl-C that strikes the end of a run leaves the loop marked as running, in this thread.
    return loop.is_running() and getattr(loop, "_thread_id", None) != threading.get_ident()


def _unlock(lock: Any) -> None:
    """Release a lock that a Ctrl-C has left locked: one that struck while it was being taken."""
    lock.acquire(timeout=LOCKED)
    lock.release()


def end_idle_threads_at_exit() -> None:
    """Call `end_idle_threads` before the interpreter waits for its threads."""
    # No public hook of Python runs then: `atexit` comes afterwards.
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(end_idle_threads)
