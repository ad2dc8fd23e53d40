"""An engine that serves many requests at once, over transformers' continuous batching."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter, sleep
from typing import Any

from anyio import from_thread
from anyio.lowlevel import checkpoint

from .._bridge import ThreadEvent, run_sync_joined
from .._errors import PreservingContext, wrap_control_flow_exception
from .._generation import GenerationRequest, new_token_limit
from .._model import text_config
from .._prompts import tokenizer_of
from .._streams import Row
from .active_request import ActiveRequest, ScoreHooks, publish
from .base import EngineTask, ThreadEngine
from .cb_cached_tokens import report_cached_tokens
from .cb_config import Settings
from .cb_manager import cache_size, cache_used, cause_of_death, is_dying, take_results
from .cb_open import open_manager
from .cb_refusals import inputs_refusal, request_refusal
from .cb_sampling import sampling_of

__all__ = ["ContinuousBatchingEngine"]

# After a delivery the drain lets results gather for this long (seconds), because the model's thread
# has to share the interpreter with it each time that it wakes. The first result after a pause does
# not wait. A shorter time for cheap deliveries cost a lone client a tenth of its tokens per second.
DRAIN_INTERVAL = 0.005

# How long the drain waits for a result before it looks for stops and deadlines (seconds).
RESULT_POLL = 0.01

# A crossing delivers to this many streams at most, so that it does not block the loop for long.
STREAMS_AT_ONCE = 32

# This many prompts at most are encoded in one call of a worker thread.
ENCODED_AT_ONCE = 16


class ContinuousBatchingEngine(ThreadEngine):
    """Hands requests to a manager of transformers, and drains its results in a thread of its own.

    The manager's thread computes tokens. The drain takes those that are ready, turns them into
    text, and crosses to the loop for all streams together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_waiting: int | None,
        context_length: int | None,
        settings: Settings,
    ) -> None:
        super().__init__(model, tokenizer, settings.max_running, max_waiting, context_length)
        self._settings = settings
        self.manager: Any = None
        self._page = 1  # tokens
        self.active_requests: dict[str, ActiveRequest] = {}  # by id
        self.to_encode: list[BatchTask] = []
        self._has_work = ThreadEvent()
        self._lock = threading.Lock()
        self._is_drained = False  # no thread takes results any more

    # -- on the loop

    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        if reason := request_refusal(request, prompts, self.manager):
            raise new_refusal(reason)
        self.sampling_of(request)  # raises
        return lambda: BatchTask(self, request, prompts)

    def _wake(self) -> None:
        self._has_work.set()

    def _cache_used(self) -> float | None:
        return cache_used(self.manager)

    def cost_of(self, request: GenerationRequest, row: Row) -> tuple[int, int]:
        """The limit of a request's new tokens, and how many pages of the cache it can need.

        It waits for its turn until that many are free. The manager would take it at once, and take
        pages from one request for another when they run out. But then it can wait for a request to
        end that has been cancelled, which never happens.

        Raises:
            ValueError: the whole cache has fewer.
        """
        prompt = len(row.prompt_token_ids)
        if not prompt:
            raise ValueError("prompt has no tokens: there is nothing to continue")
        limit = int(new_token_limit(self.model, request.generate_kwargs, prompt))
        if limit < 1:
            raise ValueError(
                f"max_new_tokens={limit}: there is nothing to generate after {prompt} tokens"
            )
        pages = -(-(prompt + limit) // self._page)
        if pages > self.queue.main.capacity:
            raise ValueError(
                f"a prompt of {prompt} tokens and max_new_tokens={limit} do not fit into the "
                f"engine's cache of {self.queue.main.capacity * self._page:.0f} tokens"
            )
        return limit, pages

    def submit(self, active: ActiveRequest) -> None:
        """Hand a request to the manager. It does not block: its queue is unlimited."""
        (row,) = active.state.rows
        with self._lock:
            if self._is_drained:
                raise self.unavailable_error()
            # First, so that no result is missed.
            self.active_requests[active.id] = active
        # A manager that dies ignores it; the drain finds that out.
        self.manager.add_request(
            row.prompt_token_ids,
            request_id=active.id,
            max_new_tokens=active.max_new_tokens,
            streaming=True,
            eos_token_id=active.eos or -1,
            **self.sampling_of(active.request),
        )
        if active.id not in self.active_requests:
            # The drain has cancelled it meanwhile, before the manager knew of it.
            self.manager.cancel_request(active.id)
        self._has_work.set()

    def new_error(self, message: str) -> Exception:
        """The exception for a request that the manager failed with this message."""
        if is_dying(self.manager):
            return self._death()
        return RuntimeError(message)

    def sampling_of(self, request: GenerationRequest) -> dict[str, float | int]:
        """A request's sampling settings, in the manager's terms.

        Raises:
            TypeError, ValueError: a value that ``generate()`` would refuse.
        """
        return sampling_of(request, text_config(self.model).vocab_size)

    def _note_cached_tokens(self, request_id: str, tokens: int) -> None:
        """Note how many tokens of a request's prompt are computed. In the manager's thread."""
        if (active := self.active_requests.get(request_id)) is not None:
            (row,) = active.state.rows
            # A preempted request is searched again, together with its answer so far.
            row.cached_tokens = min(tokens, len(row.prompt_token_ids))

    def cancel(self, active: ActiveRequest) -> None:
        """Free the pages of a request: no more results are needed. From any thread."""
        if self.active_requests.pop(active.id, None) is not None:
            self.manager.cancel_request(active.id)

    # -- in the drain's thread

    def _main(self) -> None:
        opening = open_manager(
            self.model,
            tokenizer_of(self.tokenizer),
            self._settings,
            self.active_requests.get,
            lambda: self._is_closed,
        )
        with PreservingContext(opening) as manager:
            self.manager = manager
            self.queue.main.capacity, self._page = cache_size(manager)
            report_cached_tokens(manager, self._note_cached_tokens)
            from_thread.run_sync(self.ready.set)
            try:
                self._drain(manager)
            finally:
                # Closing the manager waits for open requests.
                for active in list(self.active_requests.values()):
                    self.cancel(active)

    def _drain(self, manager: Any) -> None:
        # A result can have shown that the manager has died, before its other streams were ended.
        while not self._is_closed and self._died_of is None:
            if not self.active_requests:
                self._has_work.wait()
                self._has_work.clear()
            elif self._drain_once(manager):
                sleep(DRAIN_INTERVAL)
            elif not manager.is_running():
                self._death()
                break
        self._finish_all()
        if self._died_of is not None:
            from_thread.run_sync(self._on_death, self._died_of)

    def _drain_once(self, manager: Any) -> bool:
        """Deliver the results that are ready. Returns whether there were any.

        Not within `_drain`: its variables would keep requests alive while it waits for new ones.
        """
        # Each has all tokens so far.
        latest = {each.request_id: each for each in take_results(manager, RESULT_POLL)}
        results = list(latest.values())
        now = perf_counter()
        # A crossing after each part: without one the loop would wait for the GIL until all results
        # have become text.
        for start in range(0, len(results), STREAMS_AT_ONCE):
            self._publish(self._process(results[start : start + STREAMS_AT_ONCE], now))
        self._publish(self._end_due(now))
        return bool(results)

    def _process(self, results: Iterable[Any], now: float) -> list[ActiveRequest]:
        """Process results. Returns the requests with something to publish."""
        changed = []
        for result in results:
            active = self.active_requests.get(result.request_id)
            if active is not None and active.process_result(result, now):
                changed.append(active)
        return changed

    def _end_due(self, now: float) -> list[ActiveRequest]:
        """End the requests that were stopped, or are late, and return them."""
        due = [
            active
            for active in list(self.active_requests.values())
            if not active.finished and active.should_end(now)
        ]
        for active in due:
            active.finish()
        return due

    def _finish_all(self) -> None:
        """End what is open: the engine has been closed, or has died."""
        with self._lock:
            self._is_drained = True
        open_ones = list(self.active_requests.values())
        for active in open_ones:
            active.finish(self.unavailable_error())  # each has an error of its own
        self._publish(open_ones)

    def _publish(self, changed: list[ActiveRequest]) -> None:
        for start in range(0, len(changed), STREAMS_AT_ONCE):
            from_thread.run_sync(publish, changed[start : start + STREAMS_AT_ONCE])

    def _death(self) -> Exception:
        if self._died_of is None and not self._is_closed:
            self._died_of = cause_of_death(self.manager)
        return self.unavailable_error()


def new_refusal(reason: str) -> ValueError:
    """The error for what continuous batching does not serve."""
    return ValueError(
        f"{reason}; batching='continuous' does not support this: use batching='none', or 'auto', "
        "which runs such a request outside the batch"
    )


class BatchTask(EngineTask):
    """A request that continuous batching serves."""

    owner: ContinuousBatchingEngine

    def __init__(
        self, engine: ContinuousBatchingEngine, request: GenerationRequest, prompts: Any
    ) -> None:
        super().__init__(engine, request.name, request.new_state(prompts))
        self._request = request
        self._prompts = prompts
        self.is_encoded = False
        self._rows: list[Row] = []
        self._max_new_tokens = 0
        self._failure: BaseException | None = None
        self._refusal: ValueError | None = None  # why continuous batching does not serve it
        self._score_hooks = ScoreHooks()

    async def prepare(self) -> None:
        if (refusal := await self.prepare_for_batch()) is not None:
            raise refusal
        self.owner.check_queue_limit(self.ticket)

    async def prepare_for_batch(self) -> ValueError | None:
        """Encode its prompt. Returns why continuous batching does not serve it, if so."""
        engine = self.owner
        engine.to_encode.append(self)
        try:
            async with engine.encoding:
                if not self.is_encoded:
                    # Together with those that came meanwhile: beside a running model, each switch
                    # to a thread and back takes time.
                    batch = [self, *(each for each in engine.to_encode if each is not self)]
                    await run_sync_joined(_encode, engine, batch[:ENCODED_AT_ONCE])
        finally:
            engine.to_encode.remove(self)
        await checkpoint()  # raises a cancellation that came meanwhile
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if not self.is_encoded:
            raise engine.unavailable_error()
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            return refusal
        if self._request.form is not None:
            async with engine.compiling:
                await run_sync_joined(self._make_score_hooks)
                await checkpoint()
        self.state.rows = self._rows
        (row,) = self._rows
        try:
            self._max_new_tokens, self.ticket.cost = engine.cost_of(self._request, row)
        except ValueError as exc:
            return exc
        return None

    def encode(self) -> None:
        """Encode its prompt. Never raises."""
        try:
            inputs, self._rows = self._request.encode(self._prompts, self.owner.context_length)
            # By the inputs, and not by the prompt: they show whether there are images.
            if reason := inputs_refusal(inputs):
                self._refusal = new_refusal(reason)
            elif self._request.form is None:
                self._make_score_hooks()
        except BaseException as exc:
            self._failure = wrap_control_flow_exception(exc, self.cancellation)
        self.is_encoded = True

    def _make_score_hooks(self) -> None:
        self._score_hooks = ScoreHooks.of(self._request, self._rows[0])

    def queue_deadline(self) -> tuple[float, str]:
        return self._request.queue_deadline(self.state)

    async def work(self) -> None:
        engine = self.owner
        active = ActiveRequest(
            self._request,
            self.state,
            self._max_new_tokens,
            engine.cancel,
            engine.new_error,
            self._score_hooks,
        )
        try:
            engine.submit(active)
            await active.finished_event.wait()
        finally:
            active.finished = True
            engine.cancel(active)


def _encode(engine: ContinuousBatchingEngine, tasks: Sequence[BatchTask]) -> None:
    """Encode several prompts, for as long as the first task waits for it."""
    for task in tasks:
        if engine.is_closed or tasks[0].state.abandoned:
            return  # each of the others starts this again
        if not task.is_encoded and not task.state.abandoned:
            task.encode()
