"""An engine that serves one request after the other, in a single thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any

from anyio import CancelScope, CapacityLimiter, from_thread
from anyio.lowlevel import checkpoint, current_token

from .._bridge import Producer, guard, has_waiters, run_sync_joined, track_active_thread
from .._generation import GenerationCall, GenerationRequest, model_limiter
from .base import EngineTask, ThreadEngine

__all__ = ["SequentialEngine"]


class SequentialEngine(ThreadEngine):
    """Calls ``generate()`` for one request at a time, always in the same thread.

    Compiled models and CUDA graphs keep state for each thread.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_waiting: int | None, context_length: int | None
    ) -> None:
        super().__init__(model, tokenizer, 1, max_waiting, context_length)
        self.work_items: SimpleQueue[WorkItem | None] = SimpleQueue()

    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        return lambda: _Task(self, request, prompts)

    def _main(self) -> None:
        from_thread.run_sync(self.ready.set)
        while (item := self.work_items.get()) is not None:
            item.run()
            del item  # or the stream would live until the next request

    def _wake(self) -> None:
        self.work_items.put(None)


class WorkItem:
    """A function that the engine's thread calls, unless it is taken back before.

    Another thread can wait until it has returned.
    """

    def __init__(self, context: Context, func: Callable[..., object], *args: Any) -> None:
        self._context = context
        self._call = func, *args
        self._tickets = [None]
        self._has_returned = threading.Event()

    def run(self) -> None:
        """Call it, unless it was taken back. It must not raise."""
        if self.take():
            try:
                self._context.run(track_active_thread, *self._call)
            finally:
                self._has_returned.set()

    def take(self) -> bool:
        """Take it: nobody else can any more. Returns whether it was there. ``pop`` is atomic."""
        try:
            self._tickets.pop()
        except IndexError:
            return False
        return True

    @property
    def has_returned(self) -> bool:
        return self._has_returned.is_set()

    def wait(self) -> None:
        """Wait until it has returned."""
        self._has_returned.wait()


class _Task(EngineTask):
    def __init__(self, engine: SequentialEngine, request: GenerationRequest, prompts: Any) -> None:
        super().__init__(engine, request.name, request.new_state(prompts))
        self._engine = engine
        self._request = request
        self._call = GenerationCall(request, prompts, self.state)
        self._limiter: CapacityLimiter
        self._context: Context

    async def prepare(self) -> None:
        async with self._engine.encoding:
            await run_sync_joined(self._encode)
            await checkpoint()

    def _encode(self) -> None:
        # The context variables of the caller, with which the task was started. Copied in this
        # thread: on the loop they also contain that the event loop runs in the current thread.
        self._context = copy_context()
        self._call.prepare(self._engine.context_length)
        self._engine.check_context_length(self.state.rows)

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
        try:
            engine.work_items.put(item)
            await self._wait_until_left(item)
        finally:
            # A cancellation, or on trio a Ctrl-C, can come before the wait has begun.
            if not item.take():
                await self._join(item)

    async def _wait_until_left(self, item: WorkItem) -> None:
        # Not awaited by an event: a Ctrl-C can strike the code that would set it.
        await run_sync_joined(item.wait, when_cancelled=self.close, is_tracked=False)

    async def _join(self, item: WorkItem) -> None:
        """Do not return before the engine's thread has left *item*, which it has taken."""
        interrupt: BaseException | None = None
        while not item.has_returned:
            try:
                self.state.abandon()
                with CancelScope(shield=True):
                    await self._wait_until_left(item)
            except self.cancellation:  # native: the first one will be raised
                pass
            except BaseException as exc:
                interrupt = exc
        if interrupt is not None:
            raise interrupt
