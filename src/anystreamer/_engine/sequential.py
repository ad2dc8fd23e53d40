"""An engine that serves one request after the other, in one thread for all of its life."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any

from anyio import CapacityLimiter, from_thread
from anyio.lowlevel import checkpoint, current_token

from .._bridge import Producer, ThreadJob, has_waiters, run_sync_joined, track_active_thread
from .._generation import GenerationRequest, generation, model_limiter
from .._streams import TextStream
from .base import EngineHost, ThreadEngine

__all__ = ["SequentialEngine"]


class SequentialEngine(ThreadEngine):
    """Calls ``generate()`` for one request at a time, always in the same thread.

    Compiled models and CUDA graphs keep state for each thread.
    """

    def __init__(self, model: Any, tokenizer: Any, max_waiting: int | None) -> None:
        super().__init__(model, tokenizer, 1, max_waiting)
        self.calls: SimpleQueue[WorkItem | None] = SimpleQueue()

    def _host_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineHost]:
        job = generation(TextStream, request, prompts)
        return lambda: _Host(self, job)

    def _main(self) -> None:
        from_thread.run_sync(self.ready.set)
        while (call := self.calls.get()) is not None:
            call.run()

    def _wake(self) -> None:
        self.calls.put(None)


class WorkItem:
    """A function for the engine's thread to call, and a way for another thread to wait for it."""

    def __init__(self, context: Context, func: Callable[..., object], *args: Any) -> None:
        self._context = context
        self._call = func, *args
        self._is_over = threading.Event()

    def run(self) -> None:
        """Call it. It must not raise."""
        try:
            self._context.run(track_active_thread, *self._call)
        finally:
            self._is_over.set()

    def wait(self) -> None:
        """Wait until it has returned."""
        self._is_over.wait()


class _Host(EngineHost):
    def __init__(self, engine: SequentialEngine, job: ThreadJob[TextStream]) -> None:
        super().__init__(engine, job)
        self._one_by_one = engine
        self._produce = job.produce
        self._limiter: CapacityLimiter
        self._context: Context

    async def _prepare(self) -> None:
        async with self._one_by_one.encoding:
            await run_sync_joined(self._encode)
            await checkpoint()

    def _encode(self) -> None:
        # The caller's: the task was started with them. Here, and not on the loop, where they would
        # say that the event loop runs in this thread.
        self._context = copy_context()
        if self.job.prepare is not None:
            self.job.prepare(self.stream)

    def _turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        self._limiter = model_limiter(
            self._one_by_one.model
        )  # streams without the engine may use it too
        return self.ticket, self._limiter

    async def _work(self) -> None:
        stream, engine = self.stream, self._one_by_one
        if engine._is_closed:  # nobody is there to call it
            return
        others_wait = has_waiters(self._limiter, current_token())
        producer = Producer[Any](
            stream, lambda: bool(engine.queue.waiting) or others_wait(), self.close
        )
        call = WorkItem(self._context, producer.run, self._produce, stream)
        engine.start(stream._watch())
        engine.calls.put(call)
        # Not awaited by an event: a Ctrl-C can strike what would set it, and the thread hold on.
        await run_sync_joined(call.wait, when_cancelled=self.close, is_tracked=False)
