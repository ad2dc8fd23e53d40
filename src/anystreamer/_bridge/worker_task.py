"""The task that takes a worker through its phases: prepare, wait for a turn, work, exit."""

from __future__ import annotations

import inspect
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Generic, TypeVar

from anyio import CancelScope, CapacityLimiter, from_thread, get_cancelled_exc_class, move_on_after
from anyio.lowlevel import EventLoopToken, current_token

from .._errors import GenerationTimeout
from .delivery import LoopDelivery, guard
from .held_turns import holding
from .join import SafeEvent, run_sync_joined
from .observing import on_open, on_start
from .producer import Producer
from .state import Phase, StreamState
from .stream import ThreadStream

__all__ = ["ThreadTask", "WorkerTask", "close_if_unstarted", "has_waiters", "run_named"]

StreamT = TypeVar("StreamT", bound="ThreadStream[Any]")


class WorkerTask(Generic[StreamT]):
    """Takes one worker through its phases, and ends after it. It never raises.

    Subclasses define what is done in each phase: `prepare`, `turns`, `work`.

    Args:
        name: of its producer, for the log and for messages.
        state: of the stream.
        stream: for the consumer.
    """

    kind = "generation"  #: what can be late, for messages

    def __init__(self, name: str, state: StreamState[Any], stream: StreamT) -> None:
        self.name = name
        self.state = state
        self.stream = stream
        self.prepared_or_failed: SafeEvent = SafeEvent()
        self.is_prepared: bool = False
        self.context_collected: bool = False  # its block was forgotten: it will never be left
        self.cancellation: type[BaseException] = get_cancelled_exc_class()
        self._delivery = LoopDelivery.of_this_loop()
        self._is_over = False
        self.coroutine: Coroutine[Any, Any, None] = self._run()
        on_open(name, state)

    # -- for subclasses

    async def prepare(self) -> None:
        """Do what is to fail at the entry of the block."""

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        """Return what to enter, one after the other, to get a turn, and to leave after it."""
        return ()

    def queue_deadline(self) -> tuple[float, str]:
        """Return how many seconds it can wait for its turn, and the phase that is late then."""
        return math.inf, ""

    @abstractmethod
    async def work(self) -> None:
        """Have the worker do its work. Returns after the worker has left it."""

    def on_cancelled(self) -> None:
        """React to a cancellation: a native one, or of the task group that it is in."""

    def on_worker_exit(self) -> None:
        """React to the worker's exit: it has left its work, or will never enter it."""

    # -- for the block, and for the owner that watches it

    def coroutines(self) -> Iterator[Coroutine[Any, Any, None]]:
        """The coroutines to start, each in a task of its own."""
        yield self.coroutine

    @property
    def is_watched(self) -> bool:
        """Whether it does not see by itself that its stream was stopped."""
        return self.state.phase is Phase.QUEUED

    @property
    def can_have_callbacks(self) -> bool:
        """Whether its producer can have registered callbacks, which a finalizer must not call."""
        return self.state.stop_callbacks is not None and not self.state.has_exited

    def finish_if_never_started(self) -> None:
        """Exit if the task has not made its first step. Called when it can no longer make one."""
        if close_if_unstarted(self.coroutine):
            self._exit()

    async def _run(self) -> None:
        try:
            await self._go_through_phases()
        finally:
            try:
                self._exit()
            finally:
                self._exit()  # again, and it changes nothing: on trio a Ctrl-C can strike anywhere

    async def _go_through_phases(self) -> None:
        state = self.state
        try:
            with state.scope:
                await self.prepare()
                self.is_prepared = True
                self.prepared_or_failed.set()
                async with AsyncExitStack() as turn:
                    await self._wait_for(turn)
                    if not state.should_end:
                        state.start()
                        on_start(state)
                        await self.work()
        except self.cancellation:
            state.abandon()
            self.on_cancelled()
        except BaseException as exc:
            state.fail(exc)

    async def _wait_for(self, turn: AsyncExitStack) -> None:
        seconds, phase = self.queue_deadline()
        with move_on_after(seconds) as waiting:
            for each in self.turns():
                await turn.enter_async_context(each)
        if waiting.cancelled_caught:
            raise GenerationTimeout(phase, self.kind)

    def _exit(self) -> None:
        if self._is_over:
            return
        self.state.exit()
        if self.state.is_registered:
            self._delivery.publish()  # after which it is no longer kept
        self.prepared_or_failed.set()
        self.on_worker_exit()
        self._is_over = True
        if self.context_collected:
            self.state.close_and_take_error()


class ThreadTask(WorkerTask[StreamT]):
    """Does the work in a worker thread of anyio, under a limiter."""

    #: also abandon the stream when a scope is cancelled: for callbacks and other threads
    watches_cancellation = False

    def __init__(
        self,
        name: str,
        state: StreamState[Any],
        stream: StreamT,
        produce: Callable[[Producer[Any]], object],
        find_limiter: Callable[[], CapacityLimiter | None],
    ) -> None:
        super().__init__(name, state, stream)
        self._produce = produce
        self._find_limiter = find_limiter  # called on the loop, to wait for the turn
        self._limiter: CapacityLimiter | None = None
        self._around_thread = CancelScope()

    def coroutines(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield self.coroutine
        yield guard(self.state, self._around_thread)
        if self.watches_cancellation:
            yield _abandon_when_cancelled(self.state)

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        self._limiter = self._find_limiter()
        return () if self._limiter is None else (self._limiter,)

    async def work(self) -> None:
        state, limiter = self.state, self._limiter
        is_model_needed = None if limiter is None else has_waiters(limiter, current_token())
        producer = Producer[Any](state, is_model_needed)
        await run_sync_joined(
            self._run_in_thread,
            producer,
            when_cancelled=state.abandon_and_cancel,
            within=self._around_thread,
        )

    def _run_in_thread(self, producer: Producer[Any]) -> None:
        with holding(self._limiter):
            run_named(self.state.label, producer.run, self._produce)


def run_named(name: str, func: Callable[..., object], *args: Any) -> None:
    """Call a function while this thread has this name, which debuggers and the log show."""
    thread = threading.current_thread()
    previous, thread.name = thread.name, name
    try:
        func(*args)
    finally:
        thread.name = previous


async def _abandon_when_cancelled(state: StreamState[Any]) -> None:
    """Abandon a stream when a scope around its block is cancelled.

    Its thread sees that by itself, at its next look. This is for callbacks and other threads.
    """
    try:
        await state.worker_exited.wait()
    except get_cancelled_exc_class():
        state.abandon()


def close_if_unstarted(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Close a coroutine that has not made its first step. Returns whether it has ended.

    A task that is cancelled natively, or a Ctrl-C before it is started, leaves one behind.
    """
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def has_waiters(limiter: CapacityLimiter, token: EventLoopToken) -> Callable[[], bool]:
    """Return a function for a worker thread: whether a task waits for *limiter*."""
    return lambda: from_thread.run_sync(limiter.statistics, token=token).tasks_waiting > 0
