"""The ``async with`` block around a stream: what it raises, and how it joins the worker."""

from __future__ import annotations

import traceback
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from anyio import (
    CancelScope,
    create_task_group,
    get_cancelled_exc_class,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from .._errors import EngineClosed, raise_preserving_context
from .observing import on_end
from .stream import ThreadStream
from .worker_task import WorkerTask

__all__ = ["SingleErrorContext", "StreamContext", "ThreadContext", "UngroupedTaskGroup"]

StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")


class UngroupedTaskGroup:
    """A task group whose end raises one exception and never a group of its own."""

    def __init__(self) -> None:
        self._task_group: TaskGroup = create_task_group()  # refuses where no event loop is running
        self._cancellation = get_cancelled_exc_class()
        # Those that have not made a step, and what makes it.
        self._unstarted: dict[Coroutine[Any, Any, None], Coroutine[Any, Any, None]] = {}

    async def open(self) -> None:
        """Let tasks be started."""
        await self._task_group.__aenter__()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a task. It must not raise.

        Not to be waited for as by `TaskGroup.start`: cancelled natively before the task's first
        step, that waits for ever.
        """
        self._unstarted[coroutine] = begins = self._begin(coroutine)
        try:
            self._task_group.start_soon(lambda: begins)
        except RuntimeError:  # it has ended
            del self._unstarted[coroutine]
            begins.close()
            coroutine.close()
            raise

    async def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        del self._unstarted[coroutine]
        await coroutine

    async def close(self, body: BaseException | None) -> BaseException | None:
        """Wait for the tasks. Returns what is raised meanwhile, or *body* if it is a cancellation.

        A native cancellation, or a KeyboardInterrupt, may cut the waiting short.
        """
        # The task group is shown cancellations only. It would wrap and rebuild the body's own
        # error.
        shown = body if isinstance(body, self._cancellation) else None
        raised: BaseException | None
        try:
            swallowed = await self._task_group.__aexit__(
                type(shown) if shown else None, shown, shown.__traceback__ if shown else None
            )
        except BaseException as exc:
            raised = _unwrap_group(exc, self._cancellation)
        else:
            raised = None if swallowed else shown
        for coroutines in self._unstarted.items():
            for coroutine in coroutines:
                coroutine.close()  # it will never begin, and would complain of that
        return raised


class SingleErrorContext:
    """The end of an ``async with`` block that decides by itself what it raises."""

    @abstractmethod
    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Leave the block whose body raised this. Returns the one exception that is to come out."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool | None:  # a plain bool would tell type checkers that it swallows exceptions
        failure = await self._leave(exc)
        if failure is None:
            return exc is not None
        if failure is exc:
            return False
        raise_preserving_context(failure)


class StreamContext(SingleErrorContext, Generic[StreamT]):
    """The ``async with`` block that owns a stream: its worker has left when it ends."""

    _cancels_task = True  # what cancels the block cancels its worker task

    def __init__(self, name: str, new_task: Callable[[], WorkerTask[StreamT]]) -> None:
        self._name = name
        self.new_task = new_task  #: makes its worker task, on the loop
        self.task: WorkerTask[StreamT] | None = None  #: once it has been opened

    @abstractmethod
    async def _start(self) -> WorkerTask[StreamT]:
        """Make the task. What is raised here is raised as it is."""

    @abstractmethod
    def _launch(self, task: WorkerTask[StreamT]) -> None:
        """Start it."""

    @abstractmethod
    async def _join(
        self, task: WorkerTask[StreamT], body: BaseException | None
    ) -> BaseException | None:
        """Wait for its end; may be cut short. Returns as `UngroupedTaskGroup.close` does."""

    async def __aenter__(self) -> StreamT:
        if self.task is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self.task = task = await self._start()
        failure: BaseException | None = None
        try:
            self._launch(task)
            await task.prepared_or_failed.wait()
            if not task.is_prepared:
                failure = task.state.error
                await checkpoint()  # it was cancelled, and so are we
        except BaseException as exc:
            failure = exc if failure is None else failure
        if failure is not None:
            task.state.error_raised = failure is task.state.error
            left = await self._leave(failure)
            raise_preserving_context(failure if left is None else left)
        return task.stream

    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Stop and join the worker. Returns the one exception that the block is to raise."""
        task = self.task
        assert task is not None
        state, cancellation = task.state, task.cancellation
        try:
            is_cancelled = self._cancels_task and isinstance(body, cancellation)
            state.close(cancel_worker=not is_cancelled)
        except KeyboardInterrupt as exc:  # trio raises it wherever it strikes
            body = exc
            state.close()
        raised = await self._join(task, body)
        task.finish_if_never_started()
        while not state.worker_exited.is_set():  # the join was cut short
            with CancelScope(shield=True):
                try:
                    await state.worker_exited.wait()
                except BaseException as exc:
                    raised = exc if raised is None else raised
        state.finalize()
        on_end(self._name, state)
        error = state.close_and_take_error()
        if isinstance(error, EngineClosed) and isinstance(body, cancellation):
            error = None  # the loop that ends cancels both: no news to anybody
        if raised is not None and not isinstance(raised, cancellation):
            return raised  # a KeyboardInterrupt while we waited
        if body is not None and not isinstance(body, cancellation):
            if error is not None and error is not body:
                summary = "".join(traceback.format_exception_only(error)).strip()
                body.add_note(f"The worker of {self._name}() failed as well: {summary}")
            return body
        return raised if error is None else error

    def _misused(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self._name}() must be opened first: "
            f"'async with {self._name}(...) as stream:', then 'async for item in stream:'"
        )

    if not TYPE_CHECKING:  # a checker that does not know them refuses the same before the run
        __aiter__ = __await__ = __iter__ = __enter__ = __exit__ = _misused


class ThreadContext(StreamContext[StreamT]):
    """The block of a stream whose worker task is in the block, in a task group of its own."""

    _tasks: UngroupedTaskGroup

    async def _start(self) -> WorkerTask[StreamT]:
        self._tasks = UngroupedTaskGroup()
        task = self.new_task()
        await self._tasks.open()
        return task

    def _launch(self, task: WorkerTask[StreamT]) -> None:
        for coroutine in task.coroutines():
            self._tasks.start(coroutine)

    async def _join(
        self, task: WorkerTask[StreamT], body: BaseException | None
    ) -> BaseException | None:
        return await self._tasks.close(body)


def _unwrap_group(exc: BaseException, cancellation: type[BaseException]) -> BaseException:
    """The one exception to raise in place of a task group's group: ours never holds a worker's."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = [_unwrap_group(leaf, cancellation) for leaf in exc.exceptions]
    return next((leaf for leaf in leaves if not isinstance(leaf, cancellation)), leaves[0])
