"""`Engine`, and the base of all engines: statistics and the model. `Owner` has the rest."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from anyio import CapacityLimiter

from .._bridge import StreamContext, run_sync_joined
from .._errors import EngineClosed, EngineDied, GenerationTimeout, describe, is_kind
from .._generation import GenerationRequest, Tools, WorkerContext
from .._model import main_input_name, max_context_length
from .._prompts import Prompt, as_prompts, validate_prompt
from .._reporting import SafeLogger
from .._streams import GenerationState, TextStream, Timeouts
from .._text import ResponseFormat, ToolChoice
from .._workers import Lane, OwnedTask, Owner
from .metrics import EngineMetrics, EngineStatistics

__all__ = [
    "MAX_RUNNING",
    "BaseEngine",
    "Engine",
    "EngineTask",
    "ThreadEngine",
    "warn_of_one_by_one",
]

logger = SafeLogger()

#: how many requests run at once by default, with continuous batching
MAX_RUNNING = 64


@runtime_checkable
class Engine(Protocol):
    """A model for many tasks: an engine of `open_engine`, or an object with the same methods."""

    def stream_text(
        self,
        prompt: Prompt,
        *,
        stop: str | Iterable[str] = (),
        timeout: float | Timeouts | None = None,
        max_buffer_size: float = math.inf,
        cancel_within: Literal["step", "layer"] = "step",
        logprobs: bool = False,
        top_logprobs: int = 0,
        skip_special_tokens: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        parse_response: bool | Mapping[str, Any] = False,
        response_format: ResponseFormat | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        parallel_tool_calls: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        worker_context: WorkerContext | None = None,
        **generate_kwargs: Any,
    ) -> StreamContext[TextStream]:
        """Generate from one prompt, as `anystreamer.stream_text` does, when its turn has come.

        Use it as ``async with engine.stream_text(prompt) as stream:``, in any task of the event
        loop that the engine was opened in. The block can stay open across a ``yield``: it opens no
        cancel scope. The model stops if you leave the block, close the generator that holds it, or
        if this generator is garbage-collected. While the request waits, `TextStream.queue_position`
        is the number of requests before it.

        Raises:
            EngineBusy: when the block is entered, if the queue is full.
            EngineClosed, EngineDied: when it is entered; or from the stream, after its text.
            RuntimeError: in another event loop.
            TypeError, ValueError: at once, or when it is entered, for what cannot be streamed.
        """

    def statistics(self) -> EngineStatistics:
        """Numbers and times of this engine's requests. From any thread."""


class BaseEngine(Owner):
    """An engine: owned by the block that opened it, used by any task of its event loop."""

    alone: Lane | None = None  #: of requests that are served one by one, if there are any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show notebooks and `help` the arguments of each kind's ``stream_text``."""
        super().__init_subclass__(**kwargs)
        if own := vars(cls).get("stream_text"):
            own.__signature__ = inspect.signature(Engine.stream_text)
            own.__doc__ = Engine.stream_text.__doc__

    def __init__(self, max_running: float, max_waiting: int | None) -> None:
        super().__init__(max_running, max_waiting)
        self.metrics: EngineMetrics = EngineMetrics()

    @abstractmethod
    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        """See `Engine.stream_text`."""

    def statistics(self) -> EngineStatistics:
        """See `Engine.statistics`."""
        return self.metrics.statistics(
            waiting=len(self.queue.waiting),
            running=len(self.queue.running),
            **self._counts_alone(),
            used=self._cache_used(),
        )

    def __repr__(self) -> str:
        return f"<anystreamer.Engine {self.describe()}>"

    def _cache_used(self) -> float | None:
        """The share of the cache that is in use; None where the engine has none."""
        return None

    def _counts_alone(self) -> dict[str, int]:
        """How many requests wait to be served one by one, and how many are."""
        lane = self.alone
        if lane is None:
            return {}
        return {
            "waiting_alone": len(self.queue.waiting_for(lane)),
            "running_alone": len(lane.running),
        }


class ThreadEngine(BaseEngine):
    """An engine whose model works in a thread of this process."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_running: int,
        max_waiting: int | None,
        context_length: int | None,
    ) -> None:
        super().__init__(max_running, max_waiting)
        self.model = model
        self.tokenizer = tokenizer
        #: how many tokens the model takes, prompt and answer together; None where it is not known
        self.context_length = context_length or max_context_length(model)
        self.encoding: CapacityLimiter  # one at a time, as tokenizers do; each takes a thread
        self.compiling: CapacityLimiter  # of forms: prompts do not wait for it

    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        request = GenerationRequest("stream_text", self.model, self.tokenizer, arguments)
        validate_prompt("stream_text", prompt, main_input_name(self.model))
        return self.new_context(request.name, self._new_task_for(request, as_prompts(prompt)))

    @abstractmethod
    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        """Refuse what this kind of engine cannot do. Returns a function that makes the task."""

    @abstractmethod
    def _main(self) -> None:
        """Run in the engine's thread until `_is_closed`. Sets `ready`."""

    async def open(self) -> None:
        self.encoding, self.compiling = CapacityLimiter(1), CapacityLimiter(1)
        await super().open()

    async def _run(self) -> None:
        await run_sync_joined(self._main, when_cancelled=self.close, is_tracked=False)


class EngineTask(OwnedTask[TextStream]):
    """A request's task, in the engine's task group."""

    state: GenerationState

    def __init__(self, engine: BaseEngine, name: str, state: GenerationState) -> None:
        super().__init__(engine, name, state, TextStream(state))
        self._metrics = engine.metrics
        state.ticket = self.ticket
        state.clock.metrics = engine.metrics

    def on_worker_exit(self) -> None:
        super().on_worker_exit()
        if self._is_refused:
            return
        self._metrics.on_end(self.state.clock.timing(self.state.started_at, self.state.exited_at))

    @property
    def _is_refused(self) -> bool:
        error = self.state.error
        return not self.is_prepared and error is not None and self.is_refusal(error)

    def is_refusal(self, error: BaseException) -> bool:
        """Whether a request that fails with it, before its turn, was refused: a long prompt is."""
        return not is_kind(error, (GenerationTimeout, EngineClosed, EngineDied))


def warn_of_one_by_one(reason: BaseException) -> None:
    """Log why ``batching="auto"`` does without continuous batching."""
    logger.warning("batching='auto' serves one request at a time: %s", describe(reason))
