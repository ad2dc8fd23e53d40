"""One call of generate(): its hooks, the call itself, and how each row ended."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from .._bridge import Producer, close_unstarted, name_of
from .._errors import GenerationStopped, GenerationTimeout, PreservingContext, is_kind
from .._model import is_encoder_decoder, uses_torch
from .._prompts import Prompt, has_media
from .._streams import FinishReason, GenerationState, Row, TextChunk
from .generate_kwargs import is_assisted, new_token_limit
from .request import GenerationRequest
from .returned_tokens import returned_tokens, sequences_of
from .token_streamer import TokenStreamer
from .whisper import uses_windows

__all__ = ["CacheLender", "GenerationCall", "RowEnd", "finish_reasons"]

# Settings that make generate() need a tokenizer. stream_text() has one already.
_NEED_TOKENIZER = ("stop_strings", "token_healing", "assistant_tokenizer")


class CacheLender(Protocol):
    """What lends the caches of earlier requests to the calls of ``generate()``."""

    def lend(
        self,
        request: GenerationRequest,
        kwargs: dict[str, Any],
        row: Row,
        latest_ids: Callable[[], Any],
    ) -> contextlib.AbstractContextManager[None]:
        """Put a cache into the arguments of ``generate()``, and keep it after the block.

        However the block is left, the cache is kept as far as it is right.

        Args:
            request: the request.
            kwargs: the arguments, with the inputs of the model.
            row: gets how many tokens the cache has.
            latest_ids: returns a tensor of shape ``(1, T)`` with the prompt and the tokens so far,
                or None before the first one.
        """


class GenerationCall:
    """Serves one request: encodes its prompts, and calls ``generate()``."""

    def __init__(
        self,
        request: GenerationRequest,
        prompts: Sequence[Prompt] | Mapping[str, Any],
        state: GenerationState,
        caches: CacheLender | None = None,
    ) -> None:
        self._request = request
        self._prompts = prompts
        self._state = state
        self._caches = caches
        self._inputs: Mapping[str, Any] = {}
        self._fetched: Mapping[str, bytes] = {}

    async def fetch(self) -> None:
        """Fetch what the prompts have addresses of, before `prepare`. On the loop.

        Raises:
            ValueError: an address is not allowed, or cannot be fetched.
        """
        if not isinstance(self._prompts, Mapping) and any(map(has_media, self._prompts)):
            from .._prompts import fetch_media

            self._fetched = await fetch_media(self._prompts)

    def prepare(self, context_length: int | None = None) -> None:
        """Do all that comes before the turn, in a thread. An error fails the block's entry."""
        self.encode(context_length)
        self.compile_form()

    @property
    def has_form(self) -> bool:
        """Whether there is something to compile."""
        return self._request.form is not None

    def compile_form(self) -> None:
        """Compile what the answer keeps to, in a thread. It can take seconds."""
        self._request.compile_form(self._state.rows)

    def encode(self, context_length: int | None = None) -> None:
        """Encode the prompts, in a thread."""
        self._inputs, self._state.rows = self._request.encode(
            self._prompts, context_length, self._fetched
        )

    def run(self, producer: Producer[TextChunk]) -> Any:
        """Call ``generate()``, in the worker thread, and return its result.

        Raises:
            GenerationTimeout: a deadline has passed.
            BaseException: the exception of ``generate()``.
        """
        with PreservingContext(self._worker_context()):
            is_ours = not isinstance(self._prompts, Mapping)
            run = _Run(self._request, self._inputs, self._state, producer, is_ours)
            return run.run(self._caches)

    def _worker_context(self) -> contextlib.AbstractContextManager[object]:
        new_context = self._request.options.worker_context or contextlib.nullcontext
        context = new_context()
        if not hasattr(context, "__enter__"):
            close_unstarted(context)
            raise TypeError(
                f"worker_context must return a context manager for a with block, "
                f"but {name_of(new_context)} returned {type(context).__qualname__}"
            )
        return context


class _Run:
    """The hooks of one call of ``generate()``, and the call."""

    def __init__(
        self,
        request: GenerationRequest,
        inputs: Mapping[str, Any],
        state: GenerationState,
        producer: Producer[TextChunk],
        is_batch_ours: bool,
    ) -> None:
        self._request = request
        self._is_batch_ours = is_batch_ours  # and not model inputs of the caller's
        self._state = state
        self._producer = producer
        self._uses_torch = uses_torch(request.model)
        self._kwargs = {**inputs, **request.generate_kwargs}
        self._criteria = list(self._kwargs.get("stopping_criteria") or ())  # the caller's, wrapped
        self._rows = [request.row_detokenizer(number, row) for number, row in enumerate(state.rows)]
        # Criteria of transformers that end single rows: we call them again to learn which.
        self._row_criteria: list[tuple[Any, FinishReason]] = []
        # Those of transformers that end all rows: called with the length of the sequences.
        self._batch_criteria: list[Callable[[int], bool]] = []
        self._has_length_criteria = False
        # Why all rows end with a step, for the latest steps. generate() can undo the last of them.
        self._batch_ends: dict[int, FinishReason | None] = {}
        # One row's text says which stop string ended it, but not that one in its tokens did.
        self._stop_string_criterion: Any = None
        self._form_mask: Any = None
        self._sequences: Any = None  # the prompt and the tokens so far, of shape (B, T)
        self._has_windows = uses_windows(request.model, request.generate_kwargs)
        self._streamer = TokenStreamer(
            state,
            producer,
            self._rows,
            token_healing=bool(request.setting("token_healing"))
            and not is_encoder_decoder(request.model),
            has_windows=self._has_windows,
        )
        state.clock.set_deadlines(request.options.timeouts, producer.busy_clock())
        if state.clock.deadlines is not None:
            producer.check_also(lambda: state.clock.is_late(perf_counter(), producer.busy_clock()))
        # In assisted decoding, criteria also see drafts that are not accepted yet.
        self._is_assisted = is_assisted(request.model, request.generate_kwargs)
        # A stop string must end the step that completes it. Criteria are called before put().
        self._decodes_in_criteria = bool(request.options.stop_strings) and not self._is_assisted
        self._max_time = request.setting("max_time")  # seconds

    def run(self, caches: CacheLender | None) -> Any:
        request, streamer, producer = self._request, self._streamer, self._producer
        self._add_hooks()
        started = perf_counter()
        output, is_cut = None, False
        try:
            self._check_batch()
            with (
                self._cache_lent(caches),
                request.stops_between_layers(producer.should_stop),
                self._inner_calls_reported(),
            ):
                output = request.model.generate(**self._kwargs, streamer=streamer)
        except BaseException as exc:
            is_cut = is_kind(exc, GenerationStopped) and streamer.should_stop()
            if not is_cut:
                with contextlib.suppress(BaseException):  # it must not replace this error
                    streamer.finish()
                raise
            if self._has_windows and len(self._rows) == 1:
                streamer.go_on()
        seconds = perf_counter() - started
        if streamer.was_called:  # what comes before the prompt does not count for max_time
            seconds = min(seconds, streamer.prompt_seconds())
        producer.check_also(None)
        if not streamer.was_called and not producer.should_stop():
            self._take_returned(output)
        streamer.finish()
        self._note_ends(output, seconds, is_cut)
        return output

    def _check_batch(self) -> None:
        """Refuse prompts whose rows were put together here, if the model answers those wrong."""
        request = self._request
        if not self._is_batch_ours or len(self._rows) == 1 or not self._uses_torch:
            return
        from .batch_check import check_batch

        check_batch(
            request.model,
            [row.prompt_token_ids for row in self._state.rows],
            request.generate_kwargs,
            pad=request.pad,
            should_stop=self._producer.should_stop,
        )

    def _cache_lent(self, caches: CacheLender | None) -> contextlib.AbstractContextManager[None]:
        if caches is None:
            return contextlib.nullcontext()
        row = self._state.rows[0]
        return caches.lend(self._request, self._kwargs, row, lambda: self._sequences)

    def _inner_calls_reported(self) -> contextlib.AbstractContextManager[None]:
        if not self._uses_torch:
            return contextlib.nullcontext()
        from .inner_calls import inner_calls_reported

        return inner_calls_reported(self._request.model)

    def _add_hooks(self) -> None:
        """Add our criteria and processors to the arguments of ``generate()``."""
        request, kwargs = self._request, self._kwargs
        if self._uses_torch:
            from .criteria import (
                LogprobsProcessor,
                StopFlagCriteria,
                batch_criteria,
                criteria_list,
                ends_batch,
                processor_list,
                wrap_criteria,
            )

            # In the list classes of transformers, which some models' own generate() relies on.
            self._criteria = wrap_criteria(self._criteria, lambda: self._streamer.is_over)
            kwargs["stopping_criteria"] = criteria_list(
                *self._criteria, StopFlagCriteria(self._rows_to_stop)
            )
            self._find_row_criteria()
            own = batch_criteria(self._criteria)
            self._batch_criteria = [partial(ends_batch, criterion) for criterion, _ in own]
            replaced = {replaces for _, replaces in own}
            self._has_length_criteria = "max_length" in replaced
            if "max_time" in replaced:
                self._max_time = None
            processors = [*request.score_changes(), *(kwargs.get("logits_processor") or ())]
            if request.options.logprobs:
                recorder = LogprobsProcessor(request.options.top_logprobs, self._take_late)
                processors.insert(0, recorder)
                self._streamer.logprobs_of = recorder.of
            if request.form is not None:  # last: no other processor allows more again
                processors.append(self._new_form_mask(request.form.argument))
            if processors:
                kwargs["logits_processor"] = processor_list(*processors)
        else:
            kwargs["stopping_criteria"] = [
                *self._criteria,
                lambda sequences, _: all(self._rows_to_stop(sequences, {})),
            ]
        if any(request.setting(name) not in (None, False) for name in _NEED_TOKENIZER):
            kwargs["tokenizer"] = request.text_tokenizer

    def _find_row_criteria(self) -> None:
        """Find the criteria that end single rows without reporting it.

        In a batch, ``generate()`` pads such a row until all have ended. Its tokens do not always
        show that it has ended: a stop string can be in the tokens and not in the text, and the
        other way round.
        """
        from .criteria import new_stop_string_criteria, row_criteria

        request = self._request
        own = row_criteria(self._criteria)
        if not self._is_assisted:
            self._row_criteria = [(criterion, FinishReason.CRITERIA) for criterion, _ in own]
        replaced = {replaces for _, replaces in own}
        ends_in_tokens = {FinishReason.EOS, FinishReason.STOP_STRING}
        if "eos_token_id" in replaced:
            ends_in_tokens.discard(FinishReason.EOS)
        strings = request.setting("stop_strings")
        if "stop_strings" in replaced:
            ends_in_tokens.discard(FinishReason.STOP_STRING)
        elif strings and len(self._rows) > 1:
            ends_in_tokens.discard(FinishReason.STOP_STRING)
            criterion = new_stop_string_criteria(request.text_tokenizer, strings)
            self._row_criteria.append((criterion, FinishReason.STOP_STRING))
        elif strings and self._decodes_in_criteria:
            criterion = new_stop_string_criteria(request.text_tokenizer, strings)
            self._stop_string_criterion = criterion
        for row in self._rows:
            row.ends_in_tokens = frozenset(ends_in_tokens)

    def _new_form_mask(self, argument: str) -> Any:
        from .form_mask import FormMask

        request, streamer = self._request, self._streamer
        matchers = [request.form_matcher(row) for row in self._state.rows]
        self._form_mask = FormMask(
            [each for each in matchers if each is not None],
            lambda: streamer.prompt_length,
            argument=argument,
            reads_drafts=self._is_assisted,
            take_late=self._take_late,
        )
        streamer.check_tokens = self._form_mask.take
        return self._form_mask

    def _rows_to_stop(self, sequences: Any, kwargs: Mapping[str, Any]) -> list[bool]:
        """For each row, whether it ends with this step: the answer of our criterion.

        Its *kwargs* are those of a criterion.
        """
        rows, streamer = self._rows, self._streamer
        self._sequences = sequences
        streamer.begin_criteria()
        if streamer.is_over:  # a model made of several goes on, with speech for instance
            return [streamer.should_stop()]
        reasons = self._row_reasons(sequences, kwargs)
        stopped = [reason is not None for reason in reasons]
        # A device that stops one step late computes one more step, and undoes it. put() is not
        # called for that step, and finds the stop strings of the one before.
        is_last_step = streamer.all_rows_finished or all(stopped)
        if self._decodes_in_criteria and not is_last_step:
            streamer.take_new(sequences)
        ends_all = self._note_batch_end(sequences)
        for row in rows:
            stopped[row.number] |= row.should_stop
            if stopped[row.number]:
                streamer.mark_row_finished(row.number, sequences, reasons[row.number])
        if self._producer.should_stop():
            stopped = [True] * len(rows)
        streamer.end_criteria([True] * len(rows) if ends_all else stopped)
        return stopped

    def _note_batch_end(self, sequences: Any) -> bool:
        """Note why ``generate()`` ends all rows with this step. Returns whether it does.

        Its own clock begins a little later, so it does not end them before this finds it.
        """
        if self._stop_string_criterion is not None:
            ends = bool(self._stop_string_criterion(sequences, None).all())
        else:
            ends = False
        if self._max_time is None and not self._batch_criteria:
            return ends
        reason = None
        if any(each(len(sequences[0])) for each in self._batch_criteria):
            reason = FinishReason.CRITERIA
        elif self._max_time is not None and self._streamer.prompt_seconds() > self._max_time:
            reason = FinishReason.TIME
        step = self._streamer.step_of(sequences)
        latest = {at: why for at, why in self._batch_ends.items() if at >= step - 1}
        self._batch_ends = {**latest, step: reason}
        return ends or reason is not None

    def _take_late(self, sequences: Any) -> None:
        """Take tokens that a device which stops one step late has not put yet.

        Processors are called with them, before their scores and forms are those of the next step.
        """
        if self._is_assisted or self._streamer.is_over or self._sequences is None:
            return
        if self._sequences.shape == sequences.shape:  # criteria have seen them
            self._streamer.take_new(sequences)

    def _row_reasons(self, sequences: Any, kwargs: Mapping[str, Any]) -> list[FinishReason | None]:
        """For each row, why a criterion ends it with this step, if one does."""
        stopped = rows_stopped(self._criteria, len(self._rows))
        reasons = [FinishReason.CRITERIA if each else None for each in stopped]
        for criterion, reason in self._row_criteria:
            answers = criterion(sequences, None, **kwargs).tolist()
            reasons = [
                reason if answer and before is None else before
                for before, answer in zip(reasons, answers, strict=True)
            ]
        return reasons

    def _take_returned(self, output: Any) -> None:
        """Deliver the tokens that ``generate()`` returned and did not stream."""
        request, kwargs = self._request, self._kwargs
        has_decoder_alone = not is_encoder_decoder(request.model)
        rows = returned_tokens(
            output,
            len(self._rows),
            kwargs.get("input_ids", kwargs.get("inputs")) if has_decoder_alone else None,
            None if has_decoder_alone else request.setting("decoder_start_token_id"),
            request.eos_token_ids,
        )
        self._streamer.take_returned(rows)

    def _note_ends(self, output: Any, seconds: float, is_cut: bool) -> None:
        """Note how each row ended. Raises GenerationTimeout if a deadline ended one."""
        request, state, streamer = self._request, self._state, self._streamer
        model, kwargs = streamer.inner_call or (request.model, self._kwargs)
        limit = new_token_limit(model, kwargs, streamer.prompt_length)
        if self._has_length_criteria:  # in place of the limit
            limit = math.inf
        # A model that does not stream can have no limit of tokens, and make more.
        reached_limit = streamer.steps >= limit if streamer.was_called else streamer.steps == limit
        # Later, in the last put() or in what follows the text, the time can pass as well.
        is_known = streamer.was_called and streamer.steps in self._batch_ends
        known = self._batch_ends.get(streamer.steps) if is_known else None
        out_of_time = known is FinishReason.TIME or (
            not is_known and self._max_time is not None and seconds >= self._max_time
        )
        is_cut = is_cut and not streamer.is_over  # else what follows the text was cut
        if is_cut:
            criteria_met = False
        elif known is not None or reached_limit or out_of_time:
            criteria_met = known is FinishReason.CRITERIA
        else:  # this calls transformers' own criteria again
            criteria_met = self._would_stop(output, is_known)
        reasons = finish_reasons(
            self._row_ends(),
            is_cut=is_cut,
            reached_limit=reached_limit,
            out_of_time=out_of_time,
            criteria_met=criteria_met,
            is_stopped=self._producer.should_stop() or state.clock.expired_phase is not None,
            otherwise=self._reason_of_its_own(),
        )
        for row, reason in zip(state.rows, reasons, strict=True):
            row.model_finish_reason = reason
        if self._form_mask is not None:
            for number, row in enumerate(state.rows):
                row.is_form_complete = self._form_mask.is_complete(number)
        if (phase := state.clock.expired_phase) is not None and None in reasons:
            self._producer.succeed(output)
            raise GenerationTimeout(phase)

    def _row_ends(self) -> list[RowEnd]:
        [stopped, *_] = rows_stopped(self._criteria, len(self._rows))
        # It is known by the step, if criteria were called for the steps that were streamed.
        uses_latest = len(self._rows) == 1 and (self._is_assisted or not self._streamer.was_called)
        return [
            RowEnd(
                row.end_reason,
                uses_latest and stopped,
                finished_early=row.last_step < self._streamer.steps,
                is_stopped=row.should_stop,
            )
            for row in self._rows
        ]

    def _reason_of_its_own(self) -> FinishReason:
        """Why ``generate()`` has returned, if no reason that we know of ended it."""
        if self._request.setting("stop_strings"):
            return FinishReason.STOP_STRING
        if self._criteria and not self._uses_torch:  # their answers were not recorded
            return FinishReason.CRITERIA
        return FinishReason.EOS  # a token that only the model's own generate() knows

    def _would_stop(self, output: Any, is_known: bool) -> bool:
        # What ends single rows is known by the step, and the last one can be past a row's end.
        known = [each for each, _ in self._row_criteria] if self._streamer.was_called else []
        if not self._criteria or not self._uses_torch:
            return False
        from .criteria import any_would_stop, batch_criteria

        known += [each for each, _ in batch_criteria(self._criteria)] if is_known else []
        criteria = [each for each in self._criteria if all(each is not other for other in known)]

        sequences = sequences_of(output)
        if getattr(sequences, "ndim", 0) != 2:  # not every model returns what it streams
            sequences = self._sequences
        scores = getattr(output, "scores", None)
        return sequences is not None and any_would_stop(criteria, sequences, scores)


@dataclass(frozen=True, slots=True)
class RowEnd:
    """What is known about a row when ``generate()`` has returned."""

    ended: FinishReason | None  #: why it ended, if its tokens or the answers of criteria show it
    stopped_by_criterion: bool  #: where they do not: the latest answer of the caller's criteria
    finished_early: bool  #: it ended before others of its batch
    is_stopped: bool = False  #: we ended it


def finish_reasons(
    rows: Sequence[RowEnd],
    *,
    is_cut: bool,
    reached_limit: bool,
    out_of_time: bool,
    criteria_met: bool,
    is_stopped: bool,
    otherwise: FinishReason,
) -> list[FinishReason | None]:
    """For each row, the reason for which the model ended it; None where we ended it.

    Args:
        rows: what is known about each row.
        is_cut: an exception of ours ended ``generate()`` in the middle.
        reached_limit: the limit of tokens was reached.
        out_of_time: ``max_time`` had passed.
        criteria_met: one of transformers' own criteria stops after these tokens.
        is_stopped: we stopped it, or a deadline did.
        otherwise: the reason if none of these is true. It is never ``LENGTH``: there were steps
            to spare.
    """
    common: FinishReason | None = None  # for rows without an end of their own
    if is_cut:
        pass
    elif reached_limit:
        common = FinishReason.LENGTH
    elif out_of_time:
        common = FinishReason.TIME
    elif criteria_met:
        common = FinishReason.CRITERIA
    by_itself = None if is_cut or is_stopped else otherwise
    return [_finish_reason(row, common, by_itself) for row in rows]


def _finish_reason(
    row: RowEnd, common: FinishReason | None, by_itself: FinishReason | None
) -> FinishReason | None:
    if row.ended is not None:
        return row.ended
    if row.stopped_by_criterion:
        return FinishReason.CRITERIA
    if row.finished_early:
        return None
    return common or (None if row.is_stopped else by_itself)


def rows_stopped(criteria: Iterable[Any], rows: int) -> list[bool]:
    """For each row, whether a criterion of the caller's stopped it when last called."""
    stopped = [False] * rows
    for criterion in criteria:
        if hasattr(criterion, "rows_stopped"):
            pairs = zip(stopped, criterion.rows_stopped(rows), strict=True)
            stopped = [before or now for before, now in pairs]
    return stopped
