"""An engine that serves one request after the other, in a single thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from typing import Any

from anyio import CapacityLimiter, from_thread
from anyio.lowlevel import checkpoint, current_token

from .._bridge import Producer, guard, has_waiters, run_sync_joined
from .._generation import (
    EngineCaches,
    GenerationCall,
    GenerationRequest,
    ReuseCache,
    model_limiter,
)
from .._workers import WorkItem, WorkThreads
from .base import EngineTask, ThreadEngine

__all__ = ["SequentialEngine"]


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
        self.caches = EngineCaches(model, reuse_cache)

    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        return lambda: _Task(self, request, prompts)

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
        self._engine = engine
        self._request = request
        self._call = GenerationCall(request, prompts, self.state, engine.caches)
        self._limiter: CapacityLimiter
        self._context: Context

    async def prepare(self) -> None:
        await self._call.fetch()
        async with self._engine.encoding:
            await run_sync_joined(self._encode)
            await checkpoint()

    def _encode(self) -> None:
        # The context variables of the caller, with which the task was started. Copied in this
        # thread: on the loop they also contain that the event loop runs in the current thread.
        self._context = copy_context()
        self._call.prepare(self._engine.context_length)

    def queue_deadline(self) -> tuple[float, str]:
        return self._request.queue_deadline(self.state)

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        self._limiter = model_limiter(self._engine.model)  # streams without the engine use it too
        return self.ticket, self._limiter

    async def work(self) -> None:
        engine = self._engine
        if engine.is_closed:  # no thread is there to call it
            return
        others_wait = has_waiters(self._limiter, current_token())
        producer = Producer[Any](
            self.state, lambda: bool(engine.queue.waiting) or others_wait(), self.close
        )
        item = WorkItem(self._context, producer.run, self._call.run)
        engine.tasks.start(guard(self.state))
        await engine.threads.call(item, self.state, self.close)
