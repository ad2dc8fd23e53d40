"""The ``async with`` block around a stream: what it raises, and how it joins the worker."""

from __future__ import annotations

import traceback
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from anyio import (
    CancelScope,
    CapacityLimiter,
    create_task_group,
    get_cancelled_exc_class,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from .._errors import EngineClosed, raise_preserving_context
from .observing import on_end
from .stream import ThreadStream
from .worker_task import Host, ThreadJob, _ThreadHost

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

    _cancels_host = True  # what cancels the block cancels its host

    def __init__(self, name: str) -> None:
        self._name = name
        self._host: Host[StreamT]
        self._entered = False

    @abstractmethod
    async def _start(self) -> None:
        """Make the host. What is raised before that is raised as it is."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the host's task."""

    @abstractmethod
    async def _join(self, body: BaseException | None) -> BaseException | None:
        """Wait for the host to end; may be cut short. Returns as `UngroupedTaskGroup.close`."""

    @property
    def _stream(self) -> StreamT:
        return self._host.stream

    async def __aenter__(self) -> StreamT:
        if self._entered:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        await self._start()
        self._entered = True
        failure: BaseException | None = None
        try:
            self._launch()
            await self._host.prepared_or_failed.wait()
            if not self._host.is_prepared:
                failure = self._stream._error
                await checkpoint()  # it was cancelled, and so are we
        except BaseException as exc:
            failure = exc if failure is None else failure
        if failure is not None:
            self._stream._error_raised = failure is self._stream._error
            left = await self._leave(failure)
            raise_preserving_context(failure if left is None else left)
        return self._stream

    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Stop and join the worker. Returns the one exception that the block is to raise."""
        host, stream = self._host, self._host.stream
        cancellation = host._cancellation
        try:
            is_cancelled = self._cancels_host and isinstance(body, cancellation)
            stream._close(is_cancelled=is_cancelled)
        except KeyboardInterrupt as exc:  # trio raises it wherever it strikes
            body = exc
            stream._close()
        raised = await self._join(body)
        host.finish_if_never_started()
        while not stream._left.is_set():  # the join was cut short
            with CancelScope(shield=True):
                try:
                    await stream._left.wait()
                except BaseException as exc:
                    raised = exc if raised is None else raised
        stream._conclude()
        on_end(self._name, stream)
        error = stream._release()
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
    """The block of a stream that has a worker thread, and tasks in the block, of its own."""

    def __init__(
        self, job: ThreadJob[StreamT], find_limiter: Callable[[], CapacityLimiter | None]
    ) -> None:
        super().__init__(job.name)
        self._job = job
        self._find_limiter = find_limiter
        self._tasks: UngroupedTaskGroup

    async def _start(self) -> None:
        self._tasks = UngroupedTaskGroup()
        self._host = _ThreadHost(self._job, self._find_limiter)
        await self._tasks.open()

    def _launch(self) -> None:
        self._tasks.start(self._host.coroutine)
        self._tasks.start(self._stream._watch())

    async def _join(self, body: BaseException | None) -> BaseException | None:
        return await self._tasks.close(body)


def _unwrap_group(exc: BaseException, cancellation: type[BaseException]) -> BaseException:
    """The one exception to raise in place of a task group's group: ours never holds a worker's."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = [_unwrap_group(leaf, cancellation) for leaf in exc.exceptions]
    return next((leaf for leaf in leaves if not isinstance(leaf, cancellation)), leaves[0])
