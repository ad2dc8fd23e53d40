"""Streams whose worker task belongs to an owner that lives longer than the task that reads.

Such a stream can be opened in one task and closed in another, in another thread, or be forgotten.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from anyio import CancelScope, get_cancelled_exc_class, sleep
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from .._errors import is_kind
from .context import StreamContext, UngroupedTaskGroup
from .delivery import QUEUE_POLL
from .home import Home
from .join import SafeEvent
from .stream import ThreadStream
from .thread_call import IfInterrupted, LoopGone, ThreadCall
from .worker_task import WorkerTask

__all__ = ["DetachedContext", "DetachedTasks"]

T = TypeVar("T")
StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")
TaskT = TypeVar("TaskT", bound="WorkerTask[Any]")

# A task has made its first step after this many checkpoints of another task, or never will.
FIRST_STEP = 5


class DetachedTasks(Generic[TaskT]):
    """The worker tasks of many streams, in the task group of their owner.

    Made on the loop. Its methods are for the loop, except for `call_from_thread`.
    """

    def __init__(
        self,
        task_group: UngroupedTaskGroup,
        kind: str = "engine",
        advice: str = "from other threads use it through anystreamer.sync",
    ) -> None:
        self.token: EventLoopToken = current_token()
        self.home = Home(kind, advice)  #: of their owner
        self._kind = kind  # of the owner, for messages
        self._task_group = task_group
        # Weak: of a stream that was forgotten nothing stays.
        self._tasks: WeakSet[TaskT] = WeakSet()
        self._task_added = SafeEvent()
        self._watch_scope = CancelScope(shield=True)  # shielded as `delivery.guard` is
        self._lock = threading.Lock()
        self._takes_calls = True
        self._calls: set[object] = set()

    def open(self) -> None:
        """Begin to watch the tasks that are added."""
        self._task_group.start(self._watch())

    def end_watch(self) -> None:
        """Watch no longer: all tasks are about to end."""
        self._watch_scope.cancel()

    def end_calls(self) -> None:
        """Take no more calls from other threads."""
        with self._lock:
            self._takes_calls = False

    def add(self, task: TaskT) -> None:
        """Watch a task until it has ended."""
        self._tasks.add(task)
        self._task_added.set()

    def discard(self, task: TaskT) -> None:
        """Watch a task no longer."""
        self._tasks.discard(task)

    def __iter__(self) -> Iterator[TaskT]:
        return iter(list(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, None], name: str = "anystreamer") -> None:
        """Start a coroutine in the owner's task group. It must not raise."""
        self._task_group.start(coroutine, name)

    async def _watch(self) -> None:
        """End tasks whose stream was stopped or forgotten, where that only sets a flag."""
        with suppress(get_cancelled_exc_class()), self._watch_scope:
            while True:
                if not self._has_watched():
                    self._task_added = SafeEvent()
                    await self._task_added.wait()
                self._cancel_ended()
                await sleep(QUEUE_POLL)

    # Not in the coroutine: its variables would keep a stream alive.

    def _has_watched(self) -> bool:
        return any(task.is_watched or task.can_have_callbacks for task in self._tasks)

    def _cancel_ended(self) -> None:
        for task in self:
            if task.state.should_end:
                if task.is_watched:
                    task.state.scope.cancel()
                task.state.call_stop_callbacks()

    # -- for other threads

    def call_from_thread(
        self, func: Callable[[], Awaitable[T]], if_interrupted: IfInterrupted = "leave"
    ) -> T:
        """Await ``func()`` in a task of the owner's, and return its result. From another thread.

        Not `anyio.from_thread.run`: on asyncio that runs in the cancel scopes around this thread.
        If one of them is cancelled, it never returns.

        Args:
            func: what to call.
            if_interrupted: what becomes of the call when an exception strikes this thread.

        Raises:
            LoopGone: the owner has closed these tasks, or is in the parent of a forked child.
            BlockingIOError: called on the loop, which would wait for itself.
            BaseException: the exception of *func*.
        """
        if self.home.is_in_parent:
            raise LoopGone(self._kind)
        with suppress(RuntimeError):  # no event loop in this thread: good
            if current_token() == self.token:
                raise BlockingIOError(
                    "this call would block its own event loop: async code awaits the methods of "
                    "the same name, without anystreamer.sync"
                )
        call = ThreadCall(func, self.start, self.token, self._kind)
        try:
            with self._lock:
                if not self._takes_calls:
                    raise LoopGone(self._kind)
                self._calls.add(call)  # the owner does not end before it
            call.wait(if_interrupted)
        finally:
            try:
                self._calls.discard(call)
            finally:
                self._calls.discard(call)  # again: a Ctrl-C can strike anywhere
        return call.result()

    @property
    def has_calls(self) -> bool:
        """Whether another thread is calling."""
        return bool(self._calls)


class DetachedContext(StreamContext[StreamT]):
    """The block of a stream whose worker task is among `DetachedTasks`.

    It opens no cancel scope in its consumer's task, so it can stay open across a ``yield``.
    """

    _cancels_task = False
    _tasks: DetachedTasks[Any]

    def __init__(
        self, name: str, new_task: Callable[[], WorkerTask[StreamT]], tasks: DetachedTasks[Any]
    ) -> None:
        super().__init__(name, new_task)
        self._tasks = tasks

    async def _start(self) -> WorkerTask[StreamT]:
        task = self.new_task()
        self._tasks.add(task)
        return task

    async def _join(
        self, task: WorkerTask[StreamT], body: BaseException | None
    ) -> BaseException | None:
        raised = body if is_kind(body, task.cancellation) else None
        # Its task makes the first step as soon as the loop comes to it. If it was cancelled
        # natively before that, it will make none, and no event reports that.
        for _ in range(FIRST_STEP):
            if inspect.getcoroutinestate(task.coroutine) != inspect.CORO_CREATED:
                return raised
            with CancelScope(shield=True):
                try:
                    await checkpoint()
                except BaseException as exc:
                    raised = exc if raised is None else raised
        task.coroutine.close()
        return raised

    def __del__(self) -> None:
        # Collected without having been left. Any thread can be collecting: take no lock, wake no
        # task, call nothing. The worker checks the flag, and `DetachedTasks` does.
        if isinstance(task := getattr(self, "task", None), WorkerTask):
            task.context_collected = True  # first: either we see the end, or the end sees this
            if task.state.has_exited:
                task.state.close_and_take_error()
            else:
                task.state.abandon_in_finalizer()
