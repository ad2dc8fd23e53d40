"""`stream_text` and `stream_batch`: ``model.generate()`` behind the bridge."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, Literal, Protocol, TypeVar

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from ._arguments import is_assisted, most_new_tokens, uses_torch
from ._bridge import Producer, StreamContext, ThreadContext, ThreadJob, checked_limiter
from ._errors import GenerationStopped, GenerationTimeout
from ._prompts import Prompt, as_prompts, checked_prompt, checked_prompts, kept_for
from ._requests import Request, WorkerContext
from ._streamers import TokenStreamer
from ._streams import (
    BatchStream,
    Deadlines,
    FinishReason,
    GenerationStream,
    TextChunk,
    TextStream,
    Timeouts,
)
from ._text import SupportsDecode

__all__ = ["SupportsGenerate", "generation", "stream_batch", "stream_text", "turns_of"]

StreamT = TypeVar("StreamT", bound=GenerationStream)


class SupportsGenerate(Protocol):
    """What a model must have. Every generation model of transformers does.

    A model that is none may set ``uses_torch = False``: it is then given lists of ids in place of
    tensors, and its criteria return a bool.
    """

    @property
    def generate(self) -> Callable[..., Any]:
        """Generates with ``streamer=`` and ``stopping_criteria=``, among other arguments."""


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
    worker_context: WorkerContext | None = None,
    limiter: CapacityLimiter | None = None,
    **generate_kwargs: Any,
) -> StreamContext[TextStream]:
    """Generate from one prompt in a worker thread, and stream the text.

    Use it as ``async with stream_text(model, tokenizer, prompt, max_new_tokens=20) as stream:``.
    Leaving the block, for any reason, stops the model within one step; when it has been left, the
    worker thread has left ``generate()``. One model runs one generation at a time, first come,
    first served.

    The block owns a task group, so it must not be held across a ``yield`` (PEP 789). The streams of
    `open_engine` may be.

    Args:
        model: a generation model of transformers, in evaluation mode.
        tokenizer: its tokenizer, or a processor that has one.
        prompt: a text; or chat messages (``{"role": ..., "content": ...}``), which go through the
            chat template; or a mapping of model inputs, which goes to ``generate()`` as it is.
        stop: strings that end the text. Neither they nor any part of them is shown.
        timeout: seconds in all, or `Timeouts` for each phase. When one has passed, the model stops
            after its step, and what it has made is delivered before `GenerationTimeout` is raised.
        max_buffer_size: hold the model while this many pieces wait, unless somebody else waits for
            it.
        cancel_within: how soon the model stops. ``"layer"`` also stops it inside of a step, between
            two layers: a long prefill is one step. The step that is cut is lost, and what
            ``generate()`` would have returned with it. Not for compiled models, static caches or a
            ``past_key_values=`` of your own.
        logprobs: give each token's log-probability under the model, as `TextChunk.logprobs`: before
            temperature, top-k and their like. Not with assisted decoding.
        top_logprobs: with *logprobs*, give so many of the likeliest tokens in each token's place,
            too, as `TextChunk.top_logprobs`.
        skip_special_tokens: leave special tokens out of the text; their ids are delivered.
        chat_template_kwargs: more arguments for the chat template, such as ``tools``.
        parse_response: tell reasoning, content and tool calls apart, by the response template of
            the tokenizer (True) or by this one (a dict). Iterating then gives the answer only;
            `TextChunk.field` and `TextChunk.value` give the rest, `TextStream.message` all of it.
            ``tools`` of *chat_template_kwargs* give the arguments of calls their types. *stop* is
            looked for in all that the model says, markers of the template included.
        worker_context: makes a context manager that is entered in the worker thread, when its turn
            has come, and left right after ``generate()``: a seed, an adapter, autocast, a default
            device.
        limiter: whose turns to take, in place of the model's own.
        generate_kwargs: everything else goes to ``generate()``. With ``token_healing=True`` the
            text continues the healed prompt, and `TextStream.prompt_token_ids` are its ids.

    Raises:
        TypeError, ValueError: at once, or when the block is entered, for what cannot be streamed.
        ImportError: transformers is not installed.
        GenerationTimeout: from the stream, after *timeout*.
        BaseException: what ``generate()`` raises, from the stream, after the text before it.
    """
    request = Request(
        "stream_text",
        model,
        tokenizer,
        generate_kwargs,
        stop=stop,
        timeout=timeout,
        max_buffer_size=max_buffer_size,
        cancel_within=cancel_within,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        skip_special_tokens=skip_special_tokens,
        chat_template_kwargs=chat_template_kwargs,
        parse_response=parse_response,
        worker_context=worker_context,
    )
    checked_prompt("stream_text", prompt)
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
    worker_context: WorkerContext | None = None,
    limiter: CapacityLimiter | None = None,
    **generate_kwargs: Any,
) -> StreamContext[BatchStream]:
    """Generate from several prompts at once, and stream the texts of all rows in one stream.

    As `stream_text`, for a list of prompts, ``num_return_sequences``, or both. Shorter prompts are
    padded on the left. Each row has its own stop strings, finish reason and usage, can be stopped
    alone, and says no more once it has ended; when all have, the model stops.

    Args:
        prompts: texts, or lists of chat messages; or one mapping of model inputs with a row for
            each prompt, which goes to ``generate()`` as it is.

    The other arguments and the errors are those of `stream_text`.
    """
    request = Request(
        "stream_batch",
        model,
        tokenizer,
        generate_kwargs,
        stop=stop,
        timeout=timeout,
        max_buffer_size=max_buffer_size,
        cancel_within=cancel_within,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        skip_special_tokens=skip_special_tokens,
        chat_template_kwargs=chat_template_kwargs,
        parse_response=parse_response,
        worker_context=worker_context,
    )
    checked_prompts(prompts)
    return _open(BatchStream, request, prompts, limiter)


def generation(
    new_stream: Callable[[float], StreamT],
    request: Request,
    prompts: Sequence[Prompt] | Mapping[str, Any],
) -> ThreadJob[StreamT]:
    """A call of ``generate()`` for a block to run."""
    inputs: dict[str, Any] = {}

    def prepare(stream: StreamT) -> None:
        encoded, stream._rows = request.encode(prompts)
        inputs.update(encoded)

    def produce(stream: StreamT, producer: Producer[TextChunk]) -> Any:
        context = request.worker_context or contextlib.nullcontext
        with context():
            return _generate(request, inputs, stream, producer)

    return ThreadJob(
        name=request.name,
        new_stream=lambda: request.new_stream(new_stream, prompts),
        produce=produce,
        prepare=prepare,
        queue_timeout=request.queue_timeout,
    )


def _open(
    new_stream: Callable[[float], StreamT],
    request: Request,
    prompts: Sequence[Prompt] | Mapping[str, Any],
    limiter: CapacityLimiter | None,
) -> StreamContext[StreamT]:
    job = generation(new_stream, request, prompts)
    limiter = checked_limiter(limiter)
    return ThreadContext(job, lambda: limiter or turns_of(request.model))


# Arguments whose use makes generate() ask for a tokenizer, which stream_text() has been given.
_NEED_TOKENIZER = ("stop_strings", "token_healing", "assistant_tokenizer")


def _generate(
    request: Request,
    inputs: Mapping[str, Any],
    stream: GenerationStream,
    producer: Producer[TextChunk],
) -> Any:
    """Call ``generate()`` in the worker thread, and find out how each row ended."""
    model = request.model
    kwargs = {**inputs, **request.generate_kwargs}
    criteria = list(kwargs.get("stopping_criteria") or ())
    texts = [request.row_text(index, row) for index, row in enumerate(stream._rows)]
    streamer = TokenStreamer(stream, producer, texts)
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    streamer.heals_prompt = bool(request.setting("token_healing")) and not is_encoder_decoder
    deadlines = Deadlines(request.timeouts, stream._called_at, producer.seconds_spent())
    if request.timeouts != Timeouts():
        producer.also_stops = lambda: deadlines.look(perf_counter(), producer.seconds_spent())
        streamer.on_tokens = lambda: deadlines.token_made(producer.seconds_spent())
    # A stop string has to end the very step that completes it. Criteria are asked before put(),
    # but for assisted decoding, whose criteria also see drafts that nobody has accepted.
    looks = bool(request.stop) and not is_assisted(model, request.generate_kwargs)

    def rows_end(sequences: Any) -> list[bool]:
        has_said = rows_said(criteria, len(texts))
        # On a device that stops a step late, criteria are asked once more.
        if looks and not streamer.is_over and not all(has_said):
            streamer.look(sequences)
        for text, row in zip(texts, stream._rows, strict=True):
            has_said[text.index] |= row.stop_requested or text.ended is FinishReason.STOP_STRING
            if has_said[text.index] and len(texts) > 1:
                streamer.end_row(text.index, sequences)
        if producer.should_stop():
            has_said = [True] * len(texts)
        streamer.is_over = all(has_said[text.index] or text.ended is not None for text in texts)
        return has_said

    if uses_torch(model):
        from ._criteria import LogprobsProcessor, StopFlagCriteria, any_would_stop, watched

        criteria = watched(criteria)
        kwargs["stopping_criteria"] = [*criteria, StopFlagCriteria(rows_end)]
        if request.logprobs:
            processor = LogprobsProcessor(request.top_logprobs)
            kwargs["logits_processor"] = [processor, *(kwargs.get("logits_processor") or ())]
            streamer.logprobs_of = processor.of
    else:
        kwargs["stopping_criteria"] = [*criteria, lambda sequences, _: all(rows_end(sequences))]
    if any(request.setting(name) for name in _NEED_TOKENIZER):
        kwargs["tokenizer"] = request.decoding
    started = perf_counter()
    output, is_cut = None, False
    try:
        with request.stops_between_layers(producer.should_stop):
            output = model.generate(**kwargs, streamer=streamer)
    except BaseException as exc:
        is_cut = isinstance(exc, GenerationStopped) and streamer.is_to_stop()
        if not is_cut:
            with contextlib.suppress(Exception):  # it must not take the place of this error
                streamer.finish()
            raise
        if len(texts) == 1:  # if it has ended, then only a window of it
            texts[0].begin_window()
    seconds = perf_counter() - started
    producer.also_stops = None
    streamer.finish()

    common: FinishReason | None = None  # of the rows that have no end of their own
    if is_cut:
        pass  # none has
    elif streamer.steps >= most_new_tokens(model, kwargs, streamer.prompt_length):
        common = FinishReason.LENGTH
    elif seconds >= (request.setting("max_time") or math.inf):
        common = FinishReason.TIME
    elif criteria and uses_torch(model) and any_would_stop(criteria, output):
        common = FinishReason.CRITERIA
    elif not (producer.should_stop() or deadlines.late):  # then it is what is left
        others = FinishReason.CRITERIA if criteria else FinishReason.LENGTH
        common = FinishReason.STOP_STRING if request.setting("stop_strings") else others
    said = rows_said(criteria, len(texts))
    for text, row in zip(texts, stream._rows, strict=True):
        if text.ended is not None:
            row.own_end = text.ended
        elif said[text.index]:
            row.own_end = FinishReason.CRITERIA
        elif text.last_step == math.inf:
            row.own_end = common
    if deadlines.late and any(row.own_end is None for row in stream._rows):
        stream._result = output
        raise GenerationTimeout(deadlines.late)
    return output


def rows_said(criteria: Iterable[Any], rows: int) -> list[bool]:
    """For each row, whether a criterion of the caller's said to stop when it was last asked."""
    said = [False] * rows
    for criterion in criteria:
        if hasattr(criterion, "rows_said"):
            said = [old or new for old, new in zip(said, criterion.rows_said(rows), strict=True)]
    return said


# One generation at a time on a model, in one event loop. A device or a CPU pool that is shared
# between threads runs them slower than one by one.
_turns: RunVar[dict[int, CapacityLimiter]] = RunVar("anystreamer_turns")


def turns_of(model: Any) -> CapacityLimiter:
    """The limiter whose turns a model's generations take in this event loop."""
    while True:  # the same weights behind torch.compile() or an adapter are the same model
        if (inner := getattr(model, "_orig_mod", None)) is not None:
            model = inner
        elif callable(inner := getattr(model, "get_base_model", None)):
            model = inner()
        else:
            break
    try:
        limiters = _turns.get()
    except LookupError:
        limiters = {}
        _turns.set(limiters)
    return kept_for(model, limiters, lambda: CapacityLimiter(1))
