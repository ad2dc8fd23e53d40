"""The ``async with`` block around a worker: it starts the thread and does not end before it."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from anyio import (
    CancelScope,
    CapacityLimiter,
    create_task_group,
    get_cancelled_exc_class,
    move_on_after,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from . import _observing
from ._bridge import Producer, ThreadStream, raise_unchanged
from ._errors import GenerationTimeout
from ._waiting import Flag, run_joined

__all__ = ["StreamContext"]

StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")


class StreamContext(Generic[StreamT]):
    """The ``async with`` block that owns a stream: its worker has left when it ends."""

    def __init__(
        self,
        name: str,
        stream: Callable[[], StreamT],
        produce: Callable[[StreamT, Producer[Any]], object],
        *,
        limiter: Callable[[], CapacityLimiter | None],
        prepare: Callable[[StreamT], None] | None = None,
        queue_timeout: Callable[[StreamT], tuple[float, str]] | None = None,
    ) -> None:
        self._name = name  # of the public function, for messages
        self._new_stream = stream
        self._produce = produce
        self._find_limiter = limiter
        self._prepare = prepare  # runs in a thread before the turn; its errors come at the entry
        self._queue_timeout = queue_timeout  # seconds, and the phase to name if they pass
        self._entered = False
        self._is_prepared = False
        self._task_group: TaskGroup
        self._cancellation: type[BaseException]
        self._settled: Flag
        self._host_coroutine: Coroutine[Any, Any, None]
        self._watch_coroutine: Coroutine[Any, Any, None]
        self._stream: StreamT

    async def __aenter__(self) -> StreamT:
        if self._entered:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._task_group = create_task_group()  # first: refuses where no event loop is running
        self._entered = True
        self._cancellation = get_cancelled_exc_class()
        self._stream = self._new_stream()
        _observing.opened(self._name, self._stream)
        self._settled = Flag()  # set once the worker has been prepared, or will never be
        self._host_coroutine, self._watch_coroutine = self._host(), self._stream._watch()
        await self._task_group.__aenter__()
        failure: BaseException | None = None
        try:
            # Not start(): cancelled natively before the host's first step, it waits for ever.
            self._task_group.start_soon(lambda: self._host_coroutine)
            self._task_group.start_soon(lambda: self._watch_coroutine)
            await self._settled.wait()
            if not self._is_prepared:
                failure = self._stream._error
                await checkpoint()  # it was cancelled, and so are we
        except BaseException as exc:
            failure = exc if failure is None else failure
        if failure is not None:
            self._stream._error_raised = failure is self._stream._error
            left = await self._leave(failure)
            raise_unchanged(failure if left is None else left)
        return self._stream

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
        raise_unchanged(failure)

    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Stop and join the worker. Returns the one exception that the block is to raise."""
        cancellation = self._cancellation
        try:
            self._stream._close(is_cancelled=isinstance(body, cancellation))
        except KeyboardInterrupt as exc:  # trio raises it wherever it strikes
            body = exc
            self._stream._close()
        # The task group is shown cancellations only. It would wrap and rebuild the body's own
        # error.
        shown = body if isinstance(body, cancellation) else None
        raised: BaseException | None = None
        try:
            swallowed = await self._task_group.__aexit__(
                type(shown) if shown else None, shown, shown.__traceback__ if shown else None
            )
        except BaseException as exc:
            raised = _bare(exc, cancellation)
        else:
            raised = None if swallowed else shown
        raised = await self._see_host_end(raised)
        self._stream._conclude()
        _observing.ended(self._name, self._stream)
        error = self._stream._release()
        if raised is not None and not isinstance(raised, cancellation):
            return raised  # a KeyboardInterrupt while we waited
        if body is not None and shown is None:
            if error is not None and error is not body:
                summary = "".join(traceback.format_exception_only(error)).strip()
                body.add_note(f"The worker of {self._name}() failed as well: {summary}")
            return body
        return raised if error is None else error

    async def _see_host_end(self, raised: BaseException | None) -> BaseException | None:
        """Make sure of the join where the task group's was cut short. Returns what to raise."""
        stream = self._stream
        state = inspect.getcoroutinestate(self._host_coroutine)
        if state in (inspect.CORO_CREATED, inspect.CORO_CLOSED) and not stream._left.is_set():
            # Cancelled natively before its first step, it never ran; and would complain of it.
            self._host_coroutine.close()
            stream._finish()
        if inspect.getcoroutinestate(self._watch_coroutine) == inspect.CORO_CREATED:
            self._watch_coroutine.close()
        while not stream._left.is_set():  # a KeyboardInterrupt struck the task group's own code
            with CancelScope(shield=True):
                try:
                    await stream._left.wait()
                except BaseException as exc:
                    raised = exc if raised is None else raised
        return raised

    async def _host(self) -> None:
        """The worker's host task. It ends after the worker, whatever happens, and never raises."""
        stream = self._stream
        try:
            with stream._scope:
                if self._prepare is not None:
                    await run_joined(self._prepare, stream)
                    await checkpoint()  # a cancellation that came meanwhile must not be missed
                self._is_prepared = True
                self._settled.set()
                limiter = self._find_limiter()
                async with AsyncExitStack() as turn:
                    if limiter is not None:
                        await self._wait_for_turn(turn, limiter)
                    if not (stream._stopped or stream._cancelled):
                        stream._turn_at = perf_counter()
                        _observing.runs(self._name, stream)
                        producer = Producer[Any](stream, limiter)
                        await run_joined(
                            producer.run, self._produce, stream, when_cancelled=stream._abandon
                        )
        except self._cancellation:
            stream._abandon()
        except BaseException as exc:
            stream._error = exc if stream._error is None else stream._error
        finally:
            stream._finish()
            self._settled.set()

    async def _wait_for_turn(self, turn: AsyncExitStack, limiter: CapacityLimiter) -> None:
        seconds, phase = math.inf, ""
        if self._queue_timeout is not None:
            seconds, phase = self._queue_timeout(self._stream)
        with move_on_after(seconds) as waiting:
            await turn.enter_async_context(limiter)
        if waiting.cancelled_caught:
            raise GenerationTimeout(phase)

    def _misused(self) -> NoReturn:
        raise TypeError(
            f"{self._name}() must be opened first: "
            f"'async with {self._name}(...) as stream:', then 'async for item in stream:'"
        )

    def __aiter__(self) -> NoReturn:
        self._misused()

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        self._misused()

    def __iter__(self) -> NoReturn:
        self._misused()

    def __enter__(self) -> NoReturn:
        self._misused()

    def __exit__(self, *exc_info: object) -> NoReturn:
        self._misused()


def _bare(exc: BaseException, cancellation: type[BaseException]) -> BaseException:
    """The one exception to raise in place of a task group's group: ours never holds a worker's."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = [_bare(leaf, cancellation) for leaf in exc.exceptions]
    return next((leaf for leaf in leaves if not isinstance(leaf, cancellation)), leaves[0])
