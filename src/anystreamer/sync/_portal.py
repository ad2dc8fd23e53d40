"""The event loop that all synchronous callers of a process share."""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio

from .._bridge import (
    DetachedContext,
    DetachedTasks,
    SafeEvent,
    StreamContext,
    ThreadStream,
    UngroupedTaskGroup,
    call_after_fork,
)

__all__ = ["Tasks", "in_portal", "portal"]

StreamT = TypeVar("StreamT", bound=ThreadStream[Any])
Tasks = DetachedTasks[Any]

# Seconds that the interpreter's exit waits for streams that were left open.
EXIT_PATIENCE = 5.0


class Portal:
    """The one event loop that all callers of a process share, in a daemon thread of its own.

    Shared, because one model runs one generation at a time in one event loop: a loop for each of a
    server's threads would break that rule. Started on first use.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew, in a forked child: it has none of its parent's threads."""
        self._lock = threading.Lock()
        self._started: Future[tuple[Tasks, SafeEvent]] | None = None
        self._thread: threading.Thread

    def tasks(self) -> Tasks:
        """The tasks of the loop, which is started if it does not run.

        Raises:
            BaseException: the loop cannot start. The next call tries again.
        """
        with self._lock:
            started = self._started
            if started is None or (started.done() and started.exception() is not None):
                started = Future()
                self._thread = threading.Thread(
                    target=self._run,
                    args=(started,),
                    name="anystreamer portal",
                    daemon=True,  # its workers inherit it: an open stream must not keep a process
                )
                self._thread.start()
                self._started = started
        tasks, _ = started.result()
        return tasks

    def _run(self, started: Future[tuple[Tasks, SafeEvent]]) -> None:
        try:
            anyio.run(self._serve, started)
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    async def _serve(self, started: Future[tuple[Tasks, SafeEvent]]) -> None:
        closing = SafeEvent()
        with anyio.CancelScope() as scope:
            group = UngroupedTaskGroup()
            await group.open()
            tasks: Tasks = DetachedTasks(group)
            tasks.open()
            started.set_result((tasks, closing))
            await closing.wait()
            tasks.end_calls()
            tasks.end_watch()
            scope.cancel()
            await group.close(None)

    def close(self) -> None:
        """Stop what is open, so that no thread is inside a model when the interpreter goes."""
        started, self._started = self._started, None
        if started is None or not started.done() or started.exception() is not None:
            return
        tasks, closing = started.result()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            anyio.from_thread.run_sync(closing.set, token=tasks.token)
            self._thread.join(EXIT_PATIENCE)


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
