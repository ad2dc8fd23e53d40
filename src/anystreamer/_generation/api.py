"""`stream_text` and `stream_batch`: ``model.generate()`` behind the bridge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from anyio import CapacityLimiter
from anyio.lowlevel import checkpoint

from .._bridge import (
    StreamContext,
    ThreadContext,
    ThreadTask,
    check_limiter,
    run_sync_joined,
    validate_limiter,
)
from .._model import main_input_name, max_context_length
from .._prompts import Prompt, as_prompts, validate_prompt, validate_prompts
from .._streams import BatchStream, GenerationState, GenerationStream, TextStream, Timeouts
from .._text import ResponseFormat, SupportsDecode, ToolChoice
from .call import GenerationCall
from .limiters import model_limiter
from .options import OPTION_NAMES, Tools, WorkerContext
from .request import GenerationRequest

__all__ = ["SupportsGenerate", "stream_batch", "stream_text"]

StreamT = TypeVar("StreamT", bound=GenerationStream)


class HasGenerate(Protocol):
    """An object of any kind with a ``generate()``."""

    @property
    def generate(self) -> Callable[..., Any]:
        """Generates with ``streamer=`` and ``stopping_criteria=``, among other arguments."""


class TransformersModel(Protocol):
    """A generation model of transformers, known by an attribute that all of them have.

    Its ``generate()`` cannot be named here: transformers declares its ``self`` as a type that its
    own models do not match, so that pyright refuses them wherever ``generate`` is asked for.
    """

    @property
    def output_modalities(self) -> Sequence[str]:
        """What it generates, such as ``("text",)``."""


SupportsGenerate: TypeAlias = HasGenerate | TransformersModel
"""What a model must have: ``generate()``, as every generation model of transformers has it.

Any other object with such a method can set ``uses_torch = False``: it then gets lists of ids
instead of tensors, and its stopping criteria return a bool.
"""


def stream_text(
    model: SupportsGenerate,
    tokenizer: SupportsDecode,
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
    limiter: CapacityLimiter | None = None,
    **generate_kwargs: Any,
) -> StreamContext[TextStream]:
    """Generate from one prompt in a worker thread, and stream the text.

    Use it as ``async with stream_text(model, tokenizer, prompt, max_new_tokens=20) as stream:``.
    Leaving the block, for any reason, stops the model within one step. After the block, the worker
    thread has returned from ``generate()``. One model runs one generation at a time, first come,
    first served.

    The block owns a task group, so it must not stay open across a ``yield`` (PEP 789). Use
    `open_engine` for that: its streams can stay open across a ``yield``.

    Args:
        model: a generation model of transformers, in evaluation mode.
        tokenizer: its tokenizer, or a processor that has one. Chat messages with pictures or sound
            need the processor.
        prompt: a text, which the answer continues; or chat messages
            (``{"role": ..., "content": ...}``), to which the chat template is applied
            (`UntrustedMessages`, if others have written their text); or `TokenIds`, which are a
            text too; or a mapping of model inputs, which goes to ``generate()`` unchanged. An
            answer to chat messages or to model inputs is a text of its own: if a decoder drops the
            first space of a text, it drops the answer's.
        stop: strings that end the text. They, and parts of them, are never in the text. A string
            that is a special token of the tokenizer ends it where the model makes that token.
        timeout: seconds in all, or `Timeouts` for each phase. After it the model stops at the end
            of its step. The text so far is delivered before `GenerationTimeout` is raised.
        max_buffer_size: pause the model while this many chunks wait for the consumer, unless
            another task waits for the model.
        cancel_within: how soon the model stops. ``"layer"`` also stops it inside a step, between
            two layers: a long prefill is one step. The interrupted step is lost, and so is the
            return value of ``generate()``. Not for compiled models, static caches or a
            ``past_key_values=`` of your own.
        logprobs: give each token's log-probability under the model, as `TextChunk.logprobs`, before
            temperature, top-k and similar settings. Not with assisted decoding.
        top_logprobs: with *logprobs*, also give this many of the most likely tokens at each
            position, as `TextChunk.top_logprobs`.
        skip_special_tokens: leave special tokens, and the token that ended the text, out of it;
            their ids are delivered.
        chat_template_kwargs: more arguments for the chat template, such as ``enable_thinking``.
        parse_response: split the answer into reasoning, content and tool calls, with the response
            template of the tokenizer (True) or with this one (a dict). Iterating then gives the
            content only; `TextChunk.field` and `TextChunk.value` have the rest, and
            `TextStream.message` has all of it. The types of a call's arguments come from *tools*.
            *stop* applies to the whole output of the model, with the markers of the template.
        response_format: the format of the answer: ``"json"`` for any JSON object, a JSON schema (a
            dict), a pydantic model class, `Regex`, `Choice` or `Grammar`. Tokens that the format
            does not allow are never chosen. `TextStream.parsed` is the answer as an object. If
            *parse_response* separates reasoning, the format begins after it. With *tools*, the
            answer is tool calls (then ``parsed`` is None), or it has this format. Needs
            ``anystreamer[structured]`` and a fast tokenizer.
        tools: functions that the model can call, as OpenAI's API describes them, or as Python
            functions with types and a docstring. They go to the chat template.
        tool_choice: ``"auto"`` (the default) lets the model choose; the arguments of tools that are
            ``strict`` then match their schema. With ``"required"`` the answer is one call or
            more, with ``{"type": "function", "function": {"name": ...}}`` one call of this
            function, and the arguments match the schema. With ``"none"`` no call can begin. The
            response template (of *parse_response*, or of the tokenizer) describes how calls are
            written. To enforce something needs the same as *response_format*.
        parallel_tool_calls: if False, an answer has at most one call, and ends after it.
        frequency_penalty: subtracted from a token's logit once for each time that the answer has
            this token, as in OpenAI's API and vLLM. The prompt's tokens do not count. Negative
            values favour repetition.
        presence_penalty: subtracted once, if the answer has the token at all.
        logit_bias: added to the logits of these token ids, before the penalties. -100 bans a token,
            and 100 makes it practically the only one.
        worker_context: returns a context manager around ``generate()`` in the worker thread, once
            its turn has come: for a seed, an adapter, autocast, a default device.
        limiter: used for the turns, in place of the model's own limiter.
        generate_kwargs: all other arguments go to ``generate()``. With ``token_healing=True`` the
            text continues the healed prompt, and `TextStream.prompt_token_ids` are its ids.

    Raises:
        TypeError, ValueError: immediately, or on entering the block, for what cannot be streamed.
        ImportError: transformers is not installed.
        GenerationTimeout: from the stream, after *timeout*.
        BaseException: the exception of ``generate()``, from the stream, after the text before it.
    """
    arguments = _keyword_arguments(locals())
    validate_prompt("stream_text", prompt, main_input_name(model))
    request = GenerationRequest("stream_text", model, tokenizer, arguments)
    return _open(TextStream, request, as_prompts(prompt), limiter)


def stream_batch(
    model: SupportsGenerate,
    tokenizer: SupportsDecode,
    prompts: Sequence[Prompt] | Mapping[str, Any],
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
    limiter: CapacityLimiter | None = None,
    **generate_kwargs: Any,
) -> StreamContext[BatchStream]:
    """Generate from several prompts at once, and stream the texts of all rows in one stream.

    As `stream_text`, for a list of prompts, ``num_return_sequences``, or both. Shorter prompts are
    padded on the left, and for an encoder on the right. If the model's answers are wrong in a
    batch, the stream raises `ValueError`: a model is tested with a few tokens, before its first
    batch without padding and before its first one with padding.

    Each row has its own stop strings, finish reason and usage, and can be stopped alone. A row that
    has ended gives no more text. When all rows have ended, the model stops.

    Args:
        prompts: texts, or lists of chat messages; or one mapping of model inputs with a row for
            each prompt, which goes to ``generate()`` unchanged.

    The other arguments and the errors are those of `stream_text`.
    """
    arguments = _keyword_arguments(locals())
    validate_prompts(prompts, main_input_name(model))
    request = GenerationRequest("stream_batch", model, tokenizer, arguments)
    return _open(BatchStream, request, prompts, limiter)


def _keyword_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """From the ``locals()`` of a public function that has just begun: options and the rest.

    The options are listed in the signatures, for readers and type checkers, and in `Options`; a
    third list could forget one.
    """
    options = {name: value for name, value in given.items() if name in OPTION_NAMES}
    return {**options, **given["generate_kwargs"]}


def _open(
    new_stream: Callable[[GenerationState], StreamT],
    request: GenerationRequest,
    prompts: Sequence[Prompt] | Mapping[str, Any],
    limiter: CapacityLimiter | None,
) -> StreamContext[StreamT]:
    limiter = validate_limiter(limiter)

    def find_limiter() -> CapacityLimiter:
        return limiter or model_limiter(request.model)

    def new_task() -> _GenerationTask[StreamT]:
        check_limiter(find_limiter)  # first: a task's state has something to close
        return _GenerationTask(request, prompts, new_stream, find_limiter)

    return ThreadContext(request.name, new_task)


class _GenerationTask(ThreadTask[StreamT]):
    """Encodes the prompts in one thread, waits for the model, and generates in another."""

    state: GenerationState

    def __init__(
        self,
        request: GenerationRequest,
        prompts: Sequence[Prompt] | Mapping[str, Any],
        new_stream: Callable[[GenerationState], StreamT],
        find_limiter: Callable[[], CapacityLimiter],
    ) -> None:
        state = request.new_state(prompts)
        self._request = request
        self._call = call = GenerationCall(request, prompts, state)
        super().__init__(request.name, state, new_stream(state), call.run, find_limiter)

    async def prepare(self) -> None:
        await self._call.fetch()
        await run_sync_joined(self._call.prepare, max_context_length(self._request.model))
        await checkpoint()  # a cancellation that came meanwhile must not be missed

    def queue_deadline(self) -> tuple[float, str]:
        return self._request.queue_deadline(self.state)
