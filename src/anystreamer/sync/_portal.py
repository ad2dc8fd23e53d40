"""The event loop that all synchronous callers of a process share."""

from __future__ import annotations

import atexit
import contextlib
import threading
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from .._bridge import (
    DetachedContext,
    DetachedTasks,
    SafeEvent,
    StreamContext,
    ThreadEvent,
    ThreadStream,
    UngroupedTaskGroup,
    call_after_fork,
)

__all__ = ["Tasks", "in_portal", "portal"]

StreamT = TypeVar("StreamT", bound=ThreadStream[Any])
Tasks = DetachedTasks[Any]

# A Ctrl-C in the wait for the loop's start can leave the event unset. So it is looked at this often
# (seconds).
START_POLL = 1.0

# Seconds that the interpreter's exit waits for streams that were left open.
EXIT_PATIENCE = 5.0


class _Start:
    """A start of the loop, and what it has come to."""

    # Not a `concurrent.futures.Future`: a Ctrl-C that strikes its wait can leave it locked.

    def __init__(self) -> None:
        self.began = ThreadEvent()  # or has failed
        self.over = ThreadEvent()
        self.tasks: Tasks | None = None
        self.closing: SafeEvent
        self.error: BaseException | None = None


class Portal:
    """The one event loop that all callers of a process share, in a daemon thread of its own.

    Shared, because one model runs one generation at a time in one event loop: a loop for each of a
    server's threads would break that rule. Started on first use.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start again, in a forked child: it has none of its parent's threads."""
        self._lock = threading.Lock()
        self._started: _Start | None = None

    def tasks(self) -> Tasks:
        """The tasks of the loop, which is started if it does not run.

        Raises:
            BaseException: the loop cannot start. The next call tries again.
        """
        with self._lock:
            started = self._started
            if started is None or started.error is not None:
                self._started = started = _Start()
                # Not `threading.Thread.start`, which waits: see `_Start`. Such a thread is a
                # daemon, and its workers inherit that: an open stream must not keep a process.
                try:
                    start_new_thread(self._run, (started,))
                except BaseException:  # a Ctrl-C, too: this loop is not used
                    started.error = RuntimeError("the start of the event loop was interrupted")
                    raise
        while started.tasks is None:
            if started.error is not None:
                raise started.error
            started.began.wait(START_POLL)
        return started.tasks

    def _run(self, started: _Start) -> None:
        threading.current_thread().name = "anystreamer portal"
        try:
            anyio.run(self._serve, started)
        except BaseException as exc:
            if started.tasks is not None:
                raise
            started.error = exc
        finally:
            started.began.set()
            started.over.set()

    async def _serve(self, started: _Start) -> None:
        closing = SafeEvent()
        with anyio.CancelScope() as scope:
            group = UngroupedTaskGroup()
            await group.open()
            tasks: Tasks = DetachedTasks(group)
            tasks.open()
            started.closing, started.tasks = closing, tasks
            started.began.set()
            await closing.wait()
            tasks.end_calls()
            tasks.end_watch()
            scope.cancel()
            await group.close(None)

    def close(self) -> None:
        """Stop what is open, so that no thread is inside a model when the interpreter goes."""
        started, self._started = self._started, None
        if started is None or started.tasks is None:
            return
        tasks, closing = started.tasks, started.closing
        with contextlib.suppress(RuntimeError):  # the loop has ended
            anyio.from_thread.run_sync(closing.set, token=tasks.token)
            started.over.wait(EXIT_PATIENCE)


portal = Portal()
atexit.register(portal.close)
call_after_fork(portal.forget)


def in_portal(
    name: str, context: StreamContext[StreamT]
) -> Callable[[], tuple[Tasks, StreamContext[StreamT]]]:
    """Return a function that makes the same block as *context*, in the portal's loop.

    It also returns the tasks of that loop, which it starts if it does not run.
    """

    def new_context() -> tuple[Tasks, StreamContext[StreamT]]:
        tasks = portal.tasks()
        return tasks, DetachedContext(name, context.new_task, tasks)

    return new_context
