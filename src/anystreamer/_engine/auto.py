"""An engine with two lanes on one model: continuous batching, and `generate()` for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from anyio import from_thread

from .._bridge import Producer, run_sync_joined
from .._errors import describe
from .._generation import GenerationRequest
from .._kept_caches import EngineCaches, ReuseCache
from .._workers import Lane, WorkThreads
from .base import EngineTask, warn_of_one_by_one
from .cb_config import Settings
from .cb_passes import turns_last_until_passes_end
from .cb_refusals import request_refusal
from .continuous import BatchTask, ContinuousBatchingEngine
from .sequential import GenerateTurn, check_caller

__all__ = ["AutoEngine"]


class AutoEngine(ContinuousBatchingEngine):
    """Serves a request in the batch, if the manager can; otherwise alone, in a second thread.

    Where the manager cannot serve the model, every request is served alone.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_waiting: int | None,
        context_length: int | None,
        settings: Settings,
        reuse_cache: ReuseCache | None,
    ) -> None:
        super().__init__(model, tokenizer, max_waiting, context_length, settings)
        self.alone: Lane = self.queue.add_lane(1)
        self.threads = WorkThreads(1)
        self.caches = EngineCaches(model, reuse_cache)
        self._model_refusal: str | None = None  # why the manager serves nothing

    def lane_refusal(self, request: GenerationRequest, prompts: Any) -> str | None:
        """Why a request is served alone; None if it goes into the batch."""
        return self._model_refusal or request_refusal(request, prompts, self.manager)

    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        refusal = self.lane_refusal(request, prompts)
        if refusal is None:
            self.sampling_of(request)  # raises

        def new_task() -> EngineTask:
            if refusal is not None:
                check_caller(self)
            return _AutoTask(self, request, prompts, refusal)

        return new_task

    async def _run(self) -> None:
        self.tasks.start(self._keep_thread())
        await super()._run()

    async def _keep_thread(self) -> None:
        try:
            await run_sync_joined(self._work_alone, when_cancelled=self.close, is_tracked=False)
        finally:
            self.close()

    def _work_alone(self) -> None:
        try:
            self.threads.work()
        finally:
            self.caches.close()

    def _wake(self) -> None:
        super()._wake()
        self.threads.end()

    def _main(self) -> None:
        try:
            super()._main()
        except Exception as exc:
            if self.manager is not None:
                raise
            self._serve_alone(exc)

    def _serve_alone(self, failure: Exception) -> None:
        """Serve on without a manager. In the drain's thread."""
        self._model_refusal = describe(failure)
        warn_of_one_by_one(failure)
        from_thread.run_sync(self.ready.set)
        self._drain(None)


class _TurnBesideBatch(GenerateTurn):
    def run(self, producer: Producer[Any]) -> Any:
        with turns_last_until_passes_end():
            return super().run(producer)


class _AutoTask(BatchTask):
    """A request that goes into the batch or, if *refusal* is given or found, is served alone."""

    owner: AutoEngine

    def __init__(
        self, engine: AutoEngine, request: GenerationRequest, prompts: Any, refusal: str | None
    ) -> None:
        super().__init__(engine, request, prompts)
        self._turn = None if refusal is None else self._new_turn()

    def _new_turn(self) -> GenerateTurn:
        return _TurnBesideBatch(self.owner, self._request, self._prompts, self)

    async def prepare(self) -> None:
        if self._turn is None and await self.prepare_for_batch() is not None:
            # Known only now: what its prompt has become, or that it is too long for the cache.
            self._turn = self._new_turn()
        if self._turn is not None:
            await self._turn.prepare()
        self.owner.check_queue_limit(self.ticket)

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        return super().turns() if self._turn is None else self._turn.turns()

    async def work(self) -> None:
        await (super().work() if self._turn is None else self._turn.work())
