"""The task that takes a worker through its phases: prepare, wait for a turn, work, exit."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

from anyio import (
    CapacityLimiter,
    from_thread,
    get_cancelled_exc_class,
    move_on_after,
)
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from .._errors import GenerationTimeout
from .join import SafeEvent, run_sync_joined
from .observing import on_open, on_start
from .producer import Producer
from .stream import ThreadStream

__all__ = ["Host", "Job", "ThreadJob", "has_waiters"]

StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[StreamT]):
    """What a block is to have done, and the stream that it is done for."""

    name: str  # of the public function, for messages
    new_stream: Callable[[], StreamT]
    prepare: Callable[[StreamT], object] | None = None  # in a thread, first; fails at the entry
    queue_timeout: Callable[[StreamT], tuple[float, str]] | None = None  # seconds, and the phase


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadJob(Job[StreamT]):
    """A job for a worker thread of its own."""

    produce: Callable[[StreamT, Producer[Any]], object]  # in the thread, when its turn has come


class Host(Generic[StreamT]):
    """The task that takes a worker through its phases, and ends after it. It never raises."""

    def __init__(self, job: Job[StreamT]) -> None:
        self.job = job
        self.stream = job.new_stream()
        self.prepared_or_failed = SafeEvent()  # once the worker has been prepared, or will never be
        self.is_prepared = False
        self.coroutine: Coroutine[Any, Any, None] = self._run()
        self._cancellation = get_cancelled_exc_class()
        on_open(job.name, self.stream)

    @abstractmethod
    def _turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        """What is entered, one after the other, to have its turn, and left when it is over."""

    @abstractmethod
    async def _work(self) -> None:
        """Have the job done. Returns after the worker has left it."""

    async def _prepare(self) -> None:
        """Do what fails at the entry."""
        if self.job.prepare is not None:
            await run_sync_joined(self.job.prepare, self.stream)
            await checkpoint()  # a cancellation that came meanwhile must not be missed

    def _on_cancelled(self) -> None:
        """Called if it is cancelled natively, or with the task group that it is in."""

    def _end(self) -> None:
        """The worker has left its job, or will never enter it."""
        self.stream._finish()
        self.prepared_or_failed.set()

    def finish_if_never_started(self) -> None:
        """End it if its task was cancelled natively before the first step: none will be made."""
        state = inspect.getcoroutinestate(self.coroutine)
        if state == inspect.CORO_CLOSED and not self.stream._left.is_set():
            self._end()

    async def _run(self) -> None:
        stream, job = self.stream, self.job
        try:
            with stream._scope:
                await self._prepare()
                self.is_prepared = True
                self.prepared_or_failed.set()
                async with AsyncExitStack() as turn:
                    await self._wait_for(turn)
                    if not (stream._stopped or stream._cancelled):
                        stream._turn_at = perf_counter()
                        on_start(job.name, stream)
                        await self._work()
        except self._cancellation:
            stream._abandon()
            self._on_cancelled()
        except BaseException as exc:
            stream._error = exc if stream._error is None else stream._error
        finally:
            self._end()

    async def _wait_for(self, turn: AsyncExitStack) -> None:
        seconds, phase = math.inf, ""
        if self.job.queue_timeout is not None:
            seconds, phase = self.job.queue_timeout(self.stream)
        with move_on_after(seconds) as waiting:
            for each in self._turns():
                await turn.enter_async_context(each)
        if waiting.cancelled_caught:
            raise GenerationTimeout(phase)


class _ThreadHost(Host[StreamT]):
    """Has the job done in a thread of anyio's, under a limiter."""

    def __init__(
        self, job: ThreadJob[StreamT], find_limiter: Callable[[], CapacityLimiter | None]
    ) -> None:
        super().__init__(job)
        self._produce = job.produce
        self._find_limiter = find_limiter
        self._limiter: CapacityLimiter | None = None

    def _turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        self._limiter = self._find_limiter()
        return () if self._limiter is None else (self._limiter,)

    async def _work(self) -> None:
        stream = self.stream
        is_model_needed = (
            None if self._limiter is None else has_waiters(self._limiter, current_token())
        )
        producer = Producer[Any](stream, is_model_needed)
        await run_sync_joined(producer.run, self._produce, stream, when_cancelled=stream._abandon)


def has_waiters(limiter: CapacityLimiter, token: EventLoopToken) -> Callable[[], bool]:
    """Tells a worker thread whether anybody waits for *limiter*."""
    return lambda: from_thread.run_sync(limiter.statistics, token=token).tasks_waiting > 0
