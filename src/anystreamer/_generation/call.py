"""One call of generate(): the hooks that it is given, the call itself, and how each row ended."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

from .._bridge import Producer, ThreadJob
from .._errors import GenerationStopped, GenerationTimeout
from .._streams import Deadlines, FinishReason, GenerationStream, TextChunk, Timeouts
from .options import is_assisted, new_token_limit, uses_torch
from .prompts import Prompt
from .request import GenerationRequest
from .token_streamer import TokenStreamer

__all__ = ["generation"]

StreamT = TypeVar("StreamT", bound=GenerationStream)


def generation(
    new_stream: Callable[[float], StreamT],
    request: GenerationRequest,
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


# Arguments whose use makes generate() ask for a tokenizer, which stream_text() has been given.
_NEED_TOKENIZER = ("stop_strings", "token_healing", "assistant_tokenizer")


def _generate(
    request: GenerationRequest,
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
    streamer.token_healing = bool(request.setting("token_healing")) and not is_encoder_decoder
    deadlines = Deadlines(request.timeouts, stream._called_at, producer.busy_clock())
    if request.timeouts != Timeouts():
        producer.extra_stop_check = lambda: deadlines.check(perf_counter(), producer.busy_clock())
        streamer.on_tokens = lambda: deadlines.token_made(producer.busy_clock())
    # A stop string has to end the very step that completes it. Criteria are asked before put(),
    # but for assisted decoding, whose criteria also see drafts that nobody has accepted.
    decode_in_criteria = bool(request.stop) and not is_assisted(model, request.generate_kwargs)

    def rows_end(sequences: Any) -> list[bool]:
        stopped_rows = rows_stopped(criteria, len(texts))
        # On a device that stops a step late, criteria are asked once more.
        if decode_in_criteria and not streamer.all_rows_finished and not all(stopped_rows):
            streamer.take_from_criteria(sequences)
        for text, row in zip(texts, stream._rows, strict=True):
            stopped_rows[text.index] |= row.stop_requested or text.ended is FinishReason.STOP_STRING
            if stopped_rows[text.index] and len(texts) > 1:
                streamer.mark_row_finished(text.index, sequences)
        if producer.should_stop():
            stopped_rows = [True] * len(texts)
        streamer.all_rows_finished = all(
            stopped_rows[text.index] or text.ended is not None for text in texts
        )
        return stopped_rows

    if uses_torch(model):
        from .criteria import LogprobsProcessor, StopFlagCriteria, any_would_stop, wrap_criteria

        criteria = wrap_criteria(criteria)
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
    producer.extra_stop_check = None
    streamer.finish()

    common: FinishReason | None = None  # of the rows that have no end of their own
    if is_cut:
        pass  # none has
    elif streamer.steps >= new_token_limit(model, kwargs, streamer.prompt_length):
        common = FinishReason.LENGTH
    elif seconds >= (request.setting("max_time") or math.inf):
        common = FinishReason.TIME
    elif criteria and uses_torch(model) and any_would_stop(criteria, output):
        common = FinishReason.CRITERIA
    elif not (producer.should_stop() or deadlines.expired_phase):  # then it is what is left
        others = FinishReason.CRITERIA if criteria else FinishReason.LENGTH
        common = FinishReason.STOP_STRING if request.setting("stop_strings") else others
    stopped_rows = rows_stopped(criteria, len(texts))
    for text, row in zip(texts, stream._rows, strict=True):
        if text.ended is not None:
            row.model_finish_reason = text.ended
        elif stopped_rows[text.index]:
            row.model_finish_reason = FinishReason.CRITERIA
        elif text.last_step == math.inf:
            row.model_finish_reason = common
    if deadlines.expired_phase and any(row.model_finish_reason is None for row in stream._rows):
        stream._result = output
        raise GenerationTimeout(deadlines.expired_phase)
    return output


def rows_stopped(criteria: Iterable[Any], rows: int) -> list[bool]:
    """For each row, whether a criterion of the caller's said to stop when it was last asked."""
    stopped = [False] * rows
    for criterion in criteria:
        if hasattr(criterion, "rows_stopped"):
            pairs = zip(stopped, criterion.rows_stopped(rows), strict=True)
            stopped = [before or now for before, now in pairs]
    return stopped
