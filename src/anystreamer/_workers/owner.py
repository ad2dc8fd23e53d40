"""`Owner`: owns threads for an application. The queue, each stream's block and task, the end.

Engines and workers derive from `Owner`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from .._bridge import (
    DetachedContext,
    DetachedTasks,
    SafeEvent,
    StreamContext,
    StreamState,
    ThreadStream,
    UngroupedTaskGroup,
    WorkerTask,
    close_if_unstarted,
)
from .._errors import EngineBusy, EngineClosed, EngineDied, is_kind, raise_preserving_context
from .metrics import TurnMetrics
from .queue import AdmissionQueue, Ticket

__all__ = ["OwnedTask", "Owner"]

StreamT = TypeVar("StreamT", bound=ThreadStream[Any])


class Owner:
    """The base of engines and workers: many tasks of one event loop use it, one block owns it.

    Args:
        max_running: how many streams have their turn at once.
        max_waiting: how many can wait for it; None for no limit.
    """

    kind = "engine"  #: for messages
    advice = "from other threads use it through anystreamer.sync"  #: for another event loop
    metrics: TurnMetrics

    def __init__(self, max_running: float, max_waiting: int | None) -> None:
        self.queue = AdmissionQueue(max_running)
        self.task_ended = SafeEvent()  # its own task has ended
        self.ready = SafeEvent()  # it accepts streams, or never will
        self.tasks: DetachedTasks[OwnedTask[Any]]  #: of its streams, once it is open
        self._max_waiting = max_waiting
        self._coroutine: Coroutine[Any, Any, None] | None = None  # of its own task
        self._is_closed = False
        self._has_ended_streams = False
        self._died_of: BaseException | None = None

    # -- for its users

    @property
    def state(self) -> str:
        """``"open"``, ``"closed"`` or ``"died"``."""
        return "died" if self._died_of else "closed" if self._is_closed else "open"

    @property
    def is_closed(self) -> bool:
        """Whether it accepts no more streams."""
        return self._is_closed

    @property
    def max_waiting(self) -> int | None:
        """How many streams can wait for their turn; None for no limit."""
        return self._max_waiting

    @property
    def max_running(self) -> float:
        """How many streams have their turn at once."""
        return self.queue.max_running

    def describe(self) -> str:
        """Its state, and how many streams run and wait."""
        return f"{self.state}, {len(self.queue.running)} running, {len(self.queue.waiting)} waiting"

    # -- for the kinds of owner

    @abstractmethod
    async def _run(self) -> None:
        """Serve streams until `_is_closed`. Sets `ready`."""

    @abstractmethod
    def _wake(self) -> None:
        """Make `_run` check `_is_closed`."""

    def _on_death(self, cause: BaseException) -> None:
        """Note why it cannot serve streams any more, and end all of them. On the loop."""
        self._died_of = cause
        for task in self.tasks:
            task.fail(self.unavailable_error())

    def check_caller(self) -> None:
        """Raises RuntimeError if a stream would wait for a thread that waits for its caller."""

    # -- for its own block

    def own_tasks(self, task_group: UngroupedTaskGroup) -> None:
        """Take the task group for its own task, and for those of its streams."""
        self.tasks = DetachedTasks(task_group, self.kind, self.advice)

    async def open(self) -> None:
        """Start it, and wait until it accepts streams. Raises the error if it could not start."""
        self._coroutine = self._serve()
        self.tasks.start(self._coroutine)
        self.tasks.open()
        await self.ready.wait()
        if self._died_of is not None:
            raise_preserving_context(self._died_of)
        if self._is_closed:
            await checkpoint()  # it was cancelled, and so are we

    def close(self) -> None:
        """Accept no more streams, and end those that are open."""
        if self._has_ended_streams:
            return
        self._is_closed = True
        for task in self.tasks:
            task.close()
        self.tasks.end_watch()
        self._wake()
        self._has_ended_streams = True  # last: on trio a Ctrl-C can strike before

    def finish_if_never_started(self) -> None:
        """See `WorkerTask.finish_if_never_started`: the same for the owner's own task."""
        if self._coroutine is None or close_if_unstarted(self._coroutine):
            self.task_ended.set()

    async def _serve(self) -> None:
        try:
            await self._run()
        except get_cancelled_exc_class():
            pass
        except BaseException as exc:
            self._on_death(exc)
            if not is_kind(exc, Exception):
                raise  # a Ctrl-C that struck while a thread was crossing
        finally:
            self.close()
            for task in self.tasks:  # nothing else can end them any more
                task.fail(self.unavailable_error())
                task.state.scope.cancel()
            self.ready.set()
            self.task_ended.set()

    # -- for a stream's block

    def check_loop(self) -> None:
        """Raises RuntimeError in another event loop than the owner's, and in a forked child."""
        self.tasks.home.check()

    def new_context(
        self, name: str, new_task: Callable[[], OwnedTask[StreamT]]
    ) -> StreamContext[StreamT]:
        """The block of a stream. Entering it lets the stream join the queue, or refuses it."""
        return DetachedContext(name, lambda: self._admit(new_task), self.tasks)

    def _admit(self, new_task: Callable[[], OwnedTask[StreamT]]) -> OwnedTask[StreamT]:
        """Make the task of a stream.

        Raises:
            EngineBusy, EngineClosed, EngineDied
            RuntimeError: see `check_loop` and `check_caller`.
        """
        self.check_loop()
        self.check_caller()
        if self._is_closed or self._died_of is not None:
            raise self.unavailable_error()
        if self._max_waiting is not None:
            limit = self.queue.max_running + self._max_waiting
            if len(self.tasks) >= limit:
                raise self._busy_error(len(self.queue.waiting))
        return new_task()

    def check_queue_limit(self, ticket: Ticket) -> None:
        """Raises EngineBusy if it would have to wait, and the queue is full."""
        if self._max_waiting is None:
            return
        waiting = sum(each.is_ready for each in self.queue.waiting)
        if waiting >= self._max_waiting and self.queue.has_to_wait(ticket):
            raise self._busy_error(waiting)

    def _busy_error(self, waiting: int) -> EngineBusy:
        seconds = self.metrics.estimated_wait(waiting, self.queue.slots)
        return EngineBusy(waiting, seconds, self.kind)

    def forget(self, task: OwnedTask[Any]) -> None:
        """Watch a stream no longer: it has ended."""
        self.tasks.discard(task)

    def closed_error(self) -> EngineClosed:
        """The error for a stream that is open when the owner closes."""
        return EngineClosed(self.kind)

    def unavailable_error(self) -> Exception:
        """The error for a stream that cannot be served."""
        if self._died_of is None:
            return self.closed_error()
        died = EngineDied(self.kind)
        died.__cause__ = self._died_of
        return died


class OwnedTask(WorkerTask[StreamT]):
    """A stream's task, in its owner's task group: any task can be its consumer, or none."""

    def __init__(self, owner: Owner, name: str, state: StreamState[Any], stream: StreamT) -> None:
        super().__init__(name, state, stream)
        self.owner = owner
        self.ticket = owner.queue.enqueue()

    def fail(self, error: Exception) -> None:
        """End it with an error, after the items that were made."""
        self.state.fail(error)
        self.state.request_stop()
        if self.is_watched:
            self.state.scope.cancel()

    def close(self) -> None:
        """End it because its owner closes. On the loop, or in the thread of its producer."""
        self.fail(self.owner.closed_error())

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        return (self.ticket,)

    def on_cancelled(self) -> None:
        if not self.state.closed:
            self.state.fail(self.owner.closed_error())

    def on_worker_exit(self) -> None:
        self.ticket.leave()
        self.owner.forget(self)
