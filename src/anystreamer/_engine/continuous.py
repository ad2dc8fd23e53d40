"""An engine that serves many requests at once, over transformers' continuous batching."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter, sleep
from typing import Any

from anyio import from_thread, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from .._bridge import run_sync_joined
from .._errors import wrap_control_flow_exception
from .._generation import GenerationRequest, new_token_limit, tokenizer_of
from .._streams import Row
from .active_request import ActiveRequest, publish
from .base import EngineTask, ThreadEngine
from .cb_config import SAMPLING, Settings
from .cb_greedy import skip_sort_when_greedy
from .cb_manager import cache_size, cache_used, cause_of_death, is_dying
from .cb_open import open_manager

__all__ = ["ContinuousBatchingEngine"]

# The drain lets results gather for so long before it takes all that are ready (seconds). Each time
# that it wakes, the model's thread has to share the interpreter with it.
DRAIN_INTERVAL = 0.005

# How long the drain waits for a result before it looks for stops and deadlines (seconds).
RESULT_POLL = 0.01

# A crossing delivers to so many streams at the most, so that it does not hold the loop for long.
STREAMS_AT_ONCE = 32

# So many prompts at the most are encoded in one go.
ENCODED_AT_ONCE = 16

# What a request may say of the model's work. All else belongs to ``generate()``.
_SETTINGS = ("eos_token_id", "max_length", "max_new_tokens")


class ContinuousBatchingEngine(ThreadEngine):
    """Hands requests to a manager of transformers, and drains its results in a thread of its own.

    The manager's thread makes tokens; the drain takes what is ready, makes text of it, and crosses
    to the loop for all streams together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_waiting: int | None,
        settings: Settings,
    ) -> None:
        super().__init__(model, tokenizer, settings.max_running, max_waiting)
        self._settings = settings
        self.manager: Any = None
        self.cancellation = get_cancelled_exc_class()
        self._page = 1  # tokens
        self.active_requests: dict[str, ActiveRequest] = {}  # by id
        self.to_encode: list[_Task] = []
        self._has_work = threading.Event()
        self._lock = threading.Lock()
        self._is_drained = False  # nobody takes results any more

    # -- on the loop

    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        self._check(request, prompts)
        return lambda: _Task(self, request, prompts)

    def _wake(self) -> None:
        self._has_work.set()

    def _cache_used(self) -> float | None:
        return cache_used(self.manager)

    def _check(self, request: GenerationRequest, prompts: Any) -> None:
        """Refuse what the manager cannot do. Raises ValueError or TypeError, with the name."""
        given = {
            name: value for name, value in request.generate_kwargs.items() if value is not None
        }
        own = self.model.generation_config
        for name in () if self._settings.sampling else SAMPLING:
            if name in given and given[name] != (getattr(own, name) or SAMPLING[name]):
                raise ValueError(
                    f"{name}={given[name]!r}: all requests of this engine follow the model's "
                    "generation config; open_engine(..., sampling=True) lets each choose"
                )
        unknown = sorted(given.keys() - {*_SETTINGS, *SAMPLING})
        others = {
            "worker_context": request.options.worker_context is not None,
            "cancel_within": request.options.cancel_within != "step",
            "logprobs": request.options.logprobs,
            "max_buffer_size": request.options.max_buffer_size < float("inf"),
        }
        unknown += [name for name, is_given in others.items() if is_given]
        if isinstance(prompts, Mapping):
            unknown += sorted(f"prompt[{name!r}]" for name in prompts.keys() - _INPUTS)
            mask = prompts.get("attention_mask")
            if mask is not None and 0 in (mask.tolist() if hasattr(mask, "tolist") else mask)[0]:
                raise ValueError("prompt['attention_mask'] leaves tokens out: pass the others only")
        if unknown:
            raise ValueError(
                f"{unknown[0]} is not for batching='continuous', where one forward pass serves "
                "many requests; use batching='none'"
            )

    def cost_of(self, request: GenerationRequest, row: Row) -> tuple[int, int]:
        """How many new tokens a request may have, and pages of the cache come to take.

        It waits for its turn until they are free. The manager would take it at once, and pages
        from one for another when they run out; but then it may wait for a request to end that has
        been cancelled, and that is for ever.

        Raises:
            ValueError: more than there are, were it alone.
        """
        prompt = len(row.prompt_token_ids)
        if not prompt:
            raise ValueError("prompt has no tokens: there is nothing to continue")
        most = int(new_token_limit(self.model, request.generate_kwargs, prompt))
        if most < 1:
            raise ValueError(
                f"max_new_tokens={most}: there is nothing to generate after {prompt} tokens"
            )
        pages = math.ceil((prompt + most) / self._page)
        if pages > self.queue.capacity:
            raise ValueError(
                f"a prompt of {prompt} tokens and max_new_tokens={most} do not fit into the "
                f"engine's cache of {self.queue.capacity * self._page:.0f} tokens"
            )
        return most, pages

    def submit(self, active: ActiveRequest) -> None:
        """Hand a request to the manager. It does not block, as its queue has no end."""
        (row,) = active.state.rows
        with self._lock:
            if self._is_drained:
                raise self.unavailable_error()
            # First, so that no result is missed.
            self.active_requests[active.id] = active
        # One that dies takes none, which is for the drain to find.
        self.manager.add_request(
            row.prompt_token_ids,
            request_id=active.id,
            max_new_tokens=active.max_new_tokens,
            streaming=True,
            eos_token_id=active.eos or -1,
            **(self._choices(active.request) if self._settings.sampling else {}),
        )
        if active.id not in self.active_requests:
            # The drain was asked to stop it meanwhile, when the manager did not know of it.
            self.manager.cancel_request(active.id)
        self._has_work.set()

    def new_error(self, words: str) -> Exception:
        """Make an exception of the manager's words; a dead manager has none of its own."""
        if is_dying(self.manager):
            return self._death()
        return RuntimeError(words)

    def _choices(self, request: GenerationRequest) -> dict[str, float | int]:
        """A request's sampling settings, in the manager's terms."""
        chosen = {name: request.setting(name) for name in SAMPLING}
        temperature, top_k, top_p = (
            SAMPLING[name] if chosen[name] is None else chosen[name] for name in list(SAMPLING)[1:]
        )
        vocabulary = self.model.config.get_text_config().vocab_size
        if not chosen["do_sample"]:  # then the best one it is
            temperature, top_k, top_p = 1.0, 1, 1.0
        return {
            "temperature": float(temperature),
            "top_k": min(int(top_k) or vocabulary, vocabulary),
            "top_p": float(top_p),
        }

    def cancel(self, active: ActiveRequest) -> None:
        """Nothing more of it is wanted: free its pages. From any thread."""
        if self.active_requests.pop(active.id, None) is not None:
            self.manager.cancel_request(active.id)

    # -- in the drain's thread

    def _main(self) -> None:
        with open_manager(
            self.model, tokenizer_of(self.tokenizer), self._settings, lambda: self._is_closed
        ) as manager:
            self.manager = manager
            if self._settings.sampling and self.model.device.type == "cpu":
                skip_sort_when_greedy(manager)
            self.queue.capacity, self._page = cache_size(manager)
            from_thread.run_sync(self.ready.set)
            try:
                self._drain(manager)
            finally:
                # Leaving waits for whatever is open.
                for active in list(self.active_requests.values()):
                    self.cancel(active)

    def _drain(self, manager: Any) -> None:
        while not self._is_closed:
            if not self.active_requests:
                self._has_work.wait()
                self._has_work.clear()
                continue
            sleep(DRAIN_INTERVAL)
            result, latest = manager.get_result(timeout=RESULT_POLL), {}
            while result is not None:
                latest[result.request_id] = result  # each has all tokens so far
                result = manager.get_result(timeout=0) if len(latest) < 10_000 else None
            self._publish(self._process(latest.values()))
            if not latest and not manager.is_running():
                self._death()
                break
        self._finish_all()
        if self._died_of is not None:
            from_thread.run_sync(self._on_death, self._died_of)

    def _process(self, results: Iterable[Any]) -> list[ActiveRequest]:
        """Take results, and look for stops and deadlines. Returns whose stream has changed."""
        now = perf_counter()
        changed = {}
        for result in results:
            active = self.active_requests.get(result.request_id)
            if active is not None and active.process_result(result, now):
                changed[active.id] = active
        for active in list(self.active_requests.values()):
            if not active.finished and active.should_end(now):
                active.finish()
                changed[active.id] = active
        return list(changed.values())

    def _finish_all(self) -> None:
        """End what is open: the engine has been closed, or has died."""
        with self._lock:
            self._is_drained = True
        open_ones = list(self.active_requests.values())
        for active in open_ones:
            active.finish(self.unavailable_error())  # to each its own
        self._publish(open_ones)

    def _publish(self, changed: list[ActiveRequest]) -> None:
        for start in range(0, len(changed), STREAMS_AT_ONCE):
            from_thread.run_sync(publish, changed[start : start + STREAMS_AT_ONCE])

    def _death(self) -> Exception:
        if self._died_of is None and not self._is_closed:
            self._died_of = cause_of_death(self.manager)
        return self.unavailable_error()


# Model inputs that are nothing but the ids of a prompt.
_INPUTS = {"attention_mask", "input_ids"}


class _Task(EngineTask):
    def __init__(
        self, engine: ContinuousBatchingEngine, request: GenerationRequest, prompts: Any
    ) -> None:
        super().__init__(engine, request.name, request.new_state(prompts))
        self._engine = engine
        self._request = request
        self._prompts = prompts
        self.is_encoded = False
        self._rows: list[Row] = []
        self._max_new_tokens = 0
        self._failure: BaseException | None = None

    async def prepare(self) -> None:
        engine = self._engine
        engine.to_encode.append(self)
        try:
            async with engine.encoding:
                if not self.is_encoded:
                    # With those that have come meanwhile: beside a model that runs, each switch
                    # to a thread and back takes its time.
                    batch = [self, *(each for each in engine.to_encode if each is not self)]
                    await run_sync_joined(_encode, engine, batch[:ENCODED_AT_ONCE])
        finally:
            engine.to_encode.remove(self)
        await checkpoint()  # a cancellation that came meanwhile must not be missed
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if not self.is_encoded:
            raise engine.unavailable_error()
        self.state.rows = self._rows
        (row,) = self._rows
        self._max_new_tokens, self.ticket.cost = engine.cost_of(self._request, row)
        engine.check_room(self.ticket)

    def encode(self) -> None:
        """Encode its prompt. Never raises."""
        try:
            _, self._rows = self._request.encode(self._prompts)
        except BaseException as exc:
            self._failure = wrap_control_flow_exception(exc, self.cancellation)
        self.is_encoded = True

    def queue_deadline(self) -> tuple[float, str]:
        return self._request.queue_deadline(self.state)

    async def work(self) -> None:
        engine = self._engine
        active = ActiveRequest(
            self._request, self.state, self._max_new_tokens, engine.cancel, engine.new_error
        )
        try:
            engine.submit(active)
            await active.finished_event.wait()
        finally:
            active.finished = True
            engine.cancel(active)


def _encode(engine: ContinuousBatchingEngine, tasks: Sequence[_Task]) -> None:
    """Encode several prompts, that of the first on behalf of whom it is done."""
    for task in tasks:
        if engine.is_closed or tasks[0].state.abandoned:
            return  # the others see to themselves
        if not task.is_encoded and not task.state.abandoned:
            task.encode()
