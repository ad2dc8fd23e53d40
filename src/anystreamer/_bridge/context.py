"""The ``async with`` block around a stream: what it raises, and how it joins the worker."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from anyio import (
    CancelScope,
    create_task_group,
    get_cancelled_exc_class,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from .._errors import EngineClosed, add_note, describe, is_kind, raise_preserving_context
from .async_generators import is_in_async_generator
from .interrupts import call_uninterrupted, interrupt_between_callbacks, uninterrupted
from .observing import on_end
from .stream import ThreadStream
from .worker_task import WorkerTask

__all__ = ["SingleErrorContext", "StreamContext", "ThreadContext", "UngroupedTaskGroup"]

StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")


class UngroupedTaskGroup:
    """A task group whose end raises one exception, and no group of its own."""

    def __init__(self) -> None:
        interrupt_between_callbacks()
        self._task_group: TaskGroup = create_task_group()  # refuses where no event loop is running
        self._cancellation = get_cancelled_exc_class()
        # Coroutines not started yet, each with the wrapper that will start it.
        self._unstarted: dict[Coroutine[Any, Any, None], Coroutine[Any, Any, None]] = {}
        self._is_closing = False

    async def open(self) -> None:
        """Allow `start`."""
        await self._task_group.__aenter__()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str = "anystreamer") -> None:
        """Start a task of this name. It must not raise.

        `TaskGroup.start`, which waits for the task, is not used: if the task is cancelled natively
        before its first step, that waits forever.
        """
        self._unstarted[coroutine] = wrapper = self._begin(coroutine)
        try:
            # A Ctrl-C that struck trio's own start would leave a task that never begins.
            call_uninterrupted(partial(self._task_group.start_soon, lambda: wrapper, name=name))
        except RuntimeError:  # the task group has ended
            del self._unstarted[coroutine]
            wrapper.close()
            coroutine.close()
            raise

    @uninterrupted  # or it could end as if it had failed, and take the other tasks with it
    async def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        del self._unstarted[coroutine]
        await coroutine

    async def close(self, body: BaseException | None) -> BaseException | None:
        """Wait for the tasks. Returns what is raised meanwhile, or *body* if it is a cancellation.

        A native cancellation or a KeyboardInterrupt can end the wait early. It can be called again
        after a KeyboardInterrupt.
        """
        # The task group gets to see cancellations only. It would wrap and rebuild the body's own
        # error.
        shown = body if is_kind(body, self._cancellation) else None
        raised: BaseException | None = None
        is_open = not self._is_closing or self._accepts_tasks()
        self._is_closing = True
        while is_open:
            try:
                swallowed = await self._task_group.__aexit__(
                    None if shown is None else type(shown),
                    shown,
                    None if shown is None else shown.__traceback__,
                )
            except KeyboardInterrupt as exc:  # trio raises it anywhere: before the group ends, too
                raised = exc
                is_open = self._accepts_tasks()
            except BaseException as exc:
                raised, is_open = _unwrap_group(exc, self._cancellation), False
            else:
                raised, is_open = None if swallowed else raised or shown, False
        for coroutines in self._unstarted.items():
            for coroutine in coroutines:
                coroutine.close()  # it will never start, and Python would warn about that
        return raised

    def _accepts_tasks(self) -> bool:
        """Whether the task group has not ended. There is no other way to ask it."""
        try:
            self.start(_do_nothing())
        except RuntimeError:
            return False
        return True


class SingleErrorContext:
    """The end of an ``async with`` block that decides by itself what it raises."""

    @abstractmethod
    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Leave the block whose body raised *body*. Returns the one exception to raise.

        It is called again if a KeyboardInterrupt strikes it.
        """

    @uninterrupted
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool | None:  # a plain bool would tell type checkers that it swallows exceptions
        body, is_left = exc, False
        while not is_left:
            try:
                failure = await self._leave(body)
                is_left = True
            except KeyboardInterrupt as interrupt:  # trio raises it wherever it strikes
                body = interrupt
        if failure is None:
            return exc is not None
        if failure is exc:
            return False
        raise_preserving_context(failure)


class _StartsTasks(Protocol):
    """Where the worker task of a stream runs."""

    def start(self, coroutine: Coroutine[Any, Any, None], name: str = "anystreamer") -> None:
        """Start a coroutine in a task of its own. It must not raise."""


class StreamContext(SingleErrorContext, Generic[StreamT]):
    """The ``async with`` block that owns a stream: its worker has left when it ends.

    Args:
        name: of the public function, for messages that show how to use it.
        new_task: makes the worker task.
    """

    _cancels_task = True  # what cancels the block cancels its worker task
    _tasks: _StartsTasks  # once `_start` has returned

    def __init__(self, name: str, new_task: Callable[[], WorkerTask[StreamT]]) -> None:
        self._name = name
        self.new_task = new_task  #: makes its worker task, on the loop
        self.task: WorkerTask[StreamT] | None = None  #: once it has been opened

    def __repr__(self) -> str:
        task = self.task
        shown = f"not opened: 'async with {self._name}(...) as stream:'"
        return f"<anystreamer.{self._name}() {shown if task is None else repr(task.stream)}>"

    @abstractmethod
    async def _start(self) -> WorkerTask[StreamT]:
        """Make the worker task. An exception from here is raised unchanged."""

    @abstractmethod
    async def _join(
        self, task: WorkerTask[StreamT], body: BaseException | None
    ) -> BaseException | None:
        """Wait for the end of the worker task; the wait can end early.

        Returns the same as `UngroupedTaskGroup.close`.
        """

    @uninterrupted
    async def __aenter__(self) -> StreamT:
        if self.task is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self.task = task = await self._start()
        failure: BaseException | None = None
        try:
            label = task.state.label
            for coroutine in task.coroutines():
                self._tasks.start(coroutine, label)
            await task.prepared_or_failed.wait()
            if not task.is_prepared:
                failure = task.state.error
                await checkpoint()  # the task was cancelled, and so are we
        except BaseException as exc:
            failure = exc if failure is None else failure
        if failure is not None:
            task.state.error_raised = failure is task.state.error
            await self.__aexit__(type(failure), failure, None)
            raise_preserving_context(failure)
        return task.stream

    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Stop and join the worker. Returns the one exception that the block is to raise."""
        task = self.task
        assert task is not None
        state = task.state
        if state.home.is_in_parent:
            return body  # the worker is there, and goes on for the block there
        if self._cancels_task or not state.has_exited:
            try:
                state.home.check()
            except RuntimeError as elsewhere:
                state.abandon()
                return elsewhere if body is None else body
        raised = await self._stop_and_join(task, body)
        try:
            state.finalize()
            on_end(state)
        finally:
            error = state.close_and_take_error()
        return self._choose_exception(task, body, raised, error)

    async def _stop_and_join(
        self, task: WorkerTask[StreamT], body: BaseException | None
    ) -> BaseException | None:
        """Do not return before the worker has exited. Returns what is raised meanwhile."""
        state = task.state
        is_cancelled = self._cancels_task and is_kind(body, task.cancellation)
        state.close(cancel_worker=not is_cancelled)
        raised = await self._join(task, body)
        task.finish_if_never_started()
        while not state.worker_exited.is_set():  # the join has ended early
            with CancelScope(shield=True):
                try:
                    await state.worker_exited.wait()
                except BaseException as exc:
                    raised = exc if raised is None else raised
        return raised

    def _choose_exception(
        self,
        task: WorkerTask[StreamT],
        body: BaseException | None,
        raised: BaseException | None,
        error: BaseException | None,
    ) -> BaseException | None:
        """Choose what the block raises.

        Args:
            body: what the body raised.
            raised: what was raised while the block waited for the worker; or *body*, if that is a
                cancellation which has not been caught.
            error: what the worker raised, unless the consumer has seen it.
        """
        cancellation = task.cancellation
        is_cancelled = is_kind(body, cancellation)
        if is_cancelled and is_kind(error, EngineClosed):
            error = None  # a loop that ends cancels both: this adds nothing
        if raised is not None and not is_kind(raised, cancellation):
            return raised  # a KeyboardInterrupt
        if body is not None and not is_cancelled:
            if error is not None and error is not body:
                add_note(body, f"The worker of {task.name} failed as well: {describe(error)}")
            return body
        return raised if error is None else error

    @property
    def _advice(self) -> str:
        return (
            f"{self._name}() must be opened first: "
            f"'async with {self._name}(...) as stream:', then 'async for item in stream:'"
        )

    def _misused(self, *_: object) -> NoReturn:
        raise TypeError(self._advice)

    def _misused_without_loop(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self._advice}. Without an event loop use anystreamer.sync: "
            f"'with {self._name}(...) as stream:', then 'for item in stream:'"
        )

    if not TYPE_CHECKING:  # type checkers refuse the same before the program runs
        __aiter__ = __await__ = _misused
        __iter__ = __enter__ = __exit__ = _misused_without_loop

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(name)
            raise AttributeError(f"it has no {name} yet: {self._advice}", name=name, obj=self)


class ThreadContext(StreamContext[StreamT]):
    """The block of a stream whose worker task runs in a task group of this block."""

    _tasks: UngroupedTaskGroup

    async def _start(self) -> WorkerTask[StreamT]:
        if is_in_async_generator(2):  # past this coroutine and the one that enters the block
            warnings.warn(
                f"{self._name}() is opened in an async generator. If its block contains a yield, "
                "and the generator is not read to its end, the block ends late or never. "
                "Streams of open_engine() and open_worker() can stay open across a yield",
                RuntimeWarning,
                stacklevel=3,
            )
        self._tasks = UngroupedTaskGroup()
        task = self.new_task()
        await self._tasks.open()
        return task

    async def _join(
        self, task: WorkerTask[StreamT], body: BaseException | None
    ) -> BaseException | None:
        return await self._tasks.close(body)


async def _do_nothing() -> None:
    pass


def _unwrap_group(exc: BaseException, cancellation: type[BaseException]) -> BaseException:
    """Return the one exception to raise in place of a task group's group.

    A group of ours never holds the error of a worker.
    """
    if not is_kind(exc, BaseExceptionGroup):
        return exc
    leaves = [_unwrap_group(leaf, cancellation) for leaf in exc.exceptions]
    return next((leaf for leaf in leaves if not is_kind(leaf, cancellation)), leaves[0])
