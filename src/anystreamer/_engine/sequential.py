"""An engine that serves one request after the other, in a single thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from typing import Any, Protocol

from anyio import CapacityLimiter, from_thread
from anyio.lowlevel import checkpoint, current_token

from .._bridge import (
    DetachedTasks,
    Producer,
    check_limiter,
    guard,
    has_waiters,
    holding,
    run_sync_joined,
)
from .._generation import GenerationCall, GenerationRequest, model_limiter
from .._kept_caches import EngineCaches, ReuseCache
from .._workers import AdmissionQueue, Lane, WorkItem, WorkThreads
from .base import EngineTask, ThreadEngine

__all__ = ["GenerateTurn", "SequentialEngine", "check_caller"]


class SequentialEngine(ThreadEngine):
    """Calls ``generate()`` for one request at a time, always in the same thread.

    Compiled models and CUDA graphs keep state for each thread.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_waiting: int | None,
        context_length: int | None,
        reuse_cache: ReuseCache | None = None,
    ) -> None:
        super().__init__(model, tokenizer, 1, max_waiting, context_length)
        self.threads = WorkThreads(1)
        self.alone: Lane = self.queue.main
        self.caches = EngineCaches(model, reuse_cache)

    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        return lambda: _Task(self, request, prompts)

    def check_caller(self) -> None:
        check_caller(self)

    def _main(self) -> None:
        from_thread.run_sync(self.ready.set)
        try:
            self.threads.work()
        finally:
            self.caches.close()

    def _wake(self) -> None:
        self.threads.end()


class _Task(EngineTask):
    def __init__(self, engine: SequentialEngine, request: GenerationRequest, prompts: Any) -> None:
        super().__init__(engine, request.name, request.new_state(prompts))
        self._request = request
        self._turn = GenerateTurn(engine, request, prompts, self)

    async def prepare(self) -> None:
        await self._turn.prepare()

    def queue_deadline(self) -> tuple[float, str]:
        return self._request.queue_deadline(self.state)

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        return self._turn.turns()

    async def work(self) -> None:
        await self._turn.work()


class RunsAlone(Protocol):
    """An engine that serves some of its requests, or all, one by one."""

    model: Any
    context_length: int | None
    encoding: CapacityLimiter
    compiling: CapacityLimiter
    threads: WorkThreads  #: one, for all of these requests
    caches: EngineCaches
    alone: Lane  #: of these requests
    queue: AdmissionQueue
    tasks: DetachedTasks[Any]

    @property
    def is_closed(self) -> bool: ...


def check_caller(engine: RunsAlone) -> None:
    """Refuse a request that is served alone, if a callback of such a request waits for it.

    Raises:
        RuntimeError
    """
    engine.threads.check_caller("engine")
    check_limiter(lambda: model_limiter(engine.model))


class GenerateTurn:
    """One request that an engine serves alone: what its task does in each phase."""

    def __init__(
        self, engine: RunsAlone, request: GenerationRequest, prompts: Any, task: EngineTask
    ) -> None:
        task.ticket.lane = engine.alone
        self._engine = engine
        self._task = task
        self._call = GenerationCall(request, prompts, task.state, engine.caches)
        self._limiter: CapacityLimiter
        self._context: Context

    async def prepare(self) -> None:
        """Fetch what its prompt refers to, and encode it."""
        await self._call.fetch()
        async with self._engine.encoding:
            await run_sync_joined(self._encode)
            await checkpoint()
        if self._call.has_form:
            async with self._engine.compiling:
                await run_sync_joined(self._call.compile_form)
                await checkpoint()

    def _encode(self) -> None:
        # The context variables of the caller, with which the task was started. Copied in this
        # thread: on the loop they also contain that the event loop runs in the current thread.
        self._context = copy_context()
        self._call.encode(self._engine.context_length)

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        """Return what to enter to get a turn."""
        self._limiter = model_limiter(self._engine.model)  # streams without the engine use it too
        return self._task.ticket, self._limiter

    async def work(self) -> None:
        """Have the engine's thread call ``generate()``."""
        engine, state, close = self._engine, self._task.state, self._task.close
        if engine.is_closed:  # no thread is there to call it
            return
        others_wait = has_waiters(self._limiter, current_token())
        producer = Producer[Any](
            state, lambda: bool(engine.queue.waiting_for(engine.alone)) or others_wait(), close
        )
        item = WorkItem(self._context, producer.run, self.run)
        engine.tasks.start(guard(state))
        await engine.threads.call(item, state, close)

    def run(self, producer: Producer[Any]) -> Any:
        """Call ``generate()``. In the engine's thread."""
        with holding(self._limiter):
            return self._call.run(producer)
