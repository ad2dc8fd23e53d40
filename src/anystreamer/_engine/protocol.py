"""`Engine`: what an application can do with an engine, of whatever kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from .._bridge import StreamContext
from .._generation import Prompt, Tools, WorkerContext
from .._streams import TextStream, Timeouts
from .._text import ResponseFormat, ToolChoice
from .metrics import EngineStatistics

__all__ = ["Engine"]


@runtime_checkable
class Engine(Protocol):
    """A model for many tasks: an engine of `open_engine`, or any object that does the same."""

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
        loop that the engine was opened in. The block can be held across a ``yield``: it opens no
        cancel scope. Leaving it, closing the generator that holds it, or collecting that, stops the
        model. While it waits, `TextStream.queue_position` is how many are before it.

        Raises:
            EngineBusy: when the block is entered, if the queue is full.
            EngineClosed, EngineDied: when it is entered; or from the stream, after its text.
            RuntimeError: in another event loop.
            TypeError, ValueError: at once, or when it is entered, for what cannot be streamed.
        """

    def statistics(self) -> EngineStatistics:
        """Numbers and times of this engine's requests. From any thread."""
