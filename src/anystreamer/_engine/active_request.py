"""A request that continuous batching works on: the manager's results become text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any

from .._bridge import SafeEvent, Sink, uninterrupted
from .._errors import GenerationTimeout
from .._generation import GenerationRequest
from .._streams import FinishReason, GenerationState, Logprob, Row, TextChunk
from .._text import FormMatcher
from .cb_processors import RequestProcessors, processors_or_none

__all__ = ["ActiveRequest", "ScoreHooks", "publish"]

_request_ids = count(1)


@dataclass(frozen=True, slots=True)
class ScoreHooks:
    """What changes the scores of one request, in the manager's thread."""

    penalties: RequestProcessors | None = None  #: `generate()`'s own, before log-probabilities
    changes: RequestProcessors | None = None  #: after them
    form_matcher: FormMatcher | None = None

    @classmethod
    def of(cls, request: GenerationRequest, row: Row) -> ScoreHooks:
        """New ones. It can take a second.

        Raises:
            ImportError: llguidance is not installed.
            ValueError: a setting, or the form, is not valid.
        """
        return cls(
            processors_or_none(request.repetition_penalty()),
            processors_or_none(request.score_changes()),
            request.form_matcher(row),
        )


class ActiveRequest:
    """A request that the manager works on. Created on the loop, then used by the drain only.

    Args:
        request: what was requested.
        state: of its stream.
        max_new_tokens: the limit of its tokens.
        cancel: called with this object when no more results are needed.
        new_error: turns the manager's message into an exception.
        score_hooks: for the manager's thread alone.
    """

    def __init__(
        self,
        request: GenerationRequest,
        state: GenerationState,
        max_new_tokens: int,
        cancel: Callable[[ActiveRequest], None],
        new_error: Callable[[str], Exception],
        score_hooks: ScoreHooks,
    ) -> None:
        (self._row,) = state.rows
        self.request = request
        self.state = state
        self.sink = Sink[TextChunk](state)
        self.max_new_tokens = max_new_tokens
        self._cancel = cancel
        self._new_error = new_error
        self.score_hooks = score_hooks
        # Made now, since it depends on the field that the prompt has opened.
        matcher = score_hooks.form_matcher
        self._whole_matcher = None if matcher is None else matcher.copy_unused()
        self.id = f"anystreamer-{next(_request_ids)}"
        self.eos = request.eos_token_ids
        self.finished = False
        self.finished_event = SafeEvent()  # set on the loop
        self._detokenizer = request.row_detokenizer(0, self._row)
        self._generated: list[int] = []
        self._valid: int | None = None  # tokens of the answer, where what follows is not valid
        state.clock.set_deadlines(request.options.timeouts, perf_counter())

    def fail_after(self, tokens: int) -> None:
        """Fail at the token after these, of the prompt and the answer: its scores are not numbers.

        In the manager's thread. A request that does not sample goes on, as in ``generate()``.
        """
        # Only once: the manager goes on until the drain has seen it.
        if self._valid is None and self.request.setting("do_sample"):
            self._valid = tokens - len(self._row.prompt_token_ids)

    def process_result(self, result: Any, now: float) -> bool:
        """Process its latest result. Returns whether there is anything to publish. Never raises."""
        if self.finished:
            return False
        detokenizer = self._detokenizer
        try:
            failure, length = self._failure()
            if new := result.generated_tokens[len(self._generated) : length]:
                self._add_tokens(new, self._logprobs_of(result, len(new)), now)
            if failure is not None and detokenizer.ended is None:
                raise failure
            if detokenizer.ended is not None or result.is_finished():
                if result.error is not None and detokenizer.ended is None:
                    raise self._new_error(result.error)
                self.finish()
        except BaseException as exc:  # a panic of Rust is not an Exception
            self.finish(exc)
        return self.finished or self.sink.has_pending

    def _failure(self) -> tuple[Exception | None, int | None]:
        """Why it cannot go on, and how many of its tokens are good.

        The manager's thread finds it out before the next token, which can then be any.
        """
        matcher = self.score_hooks.form_matcher
        if matcher is not None and matcher.failure is not None:
            return matcher.failure, matcher.length
        if self._valid is None:
            return None, None
        error = RuntimeError(
            "the scores of the next token are not numbers: a logit of the model, or a setting that "
            "changes it, is too large"
        )
        return error, self._valid

    def _logprobs_of(self, result: Any, new: int) -> list[float] | None:
        """The log-probabilities of a result's next tokens, if they were asked for."""
        if not self.request.options.logprobs:
            return None
        start = len(result.logprobs) - len(result.generated_tokens) + len(self._generated)
        return list(result.logprobs[start : start + new])

    def _add_tokens(self, new: list[int], logprobs: list[float] | None, now: float) -> None:
        clock, detokenizer = self.state.clock, self._detokenizer
        self._generated += new
        clock.is_late(now, now)  # they can have come too late
        clock.tokens(len(new), now, now)
        elapsed = clock.elapsed(now)
        steps: Iterable[tuple[list[int], Logprob | None]] = [(new, None)]
        if logprobs is not None:
            steps = [([each], (value, ())) for each, value in zip(new, logprobs, strict=True)]
        elif self.request.options.stop_strings:
            # A stop string ends it with the very token that completes it.
            steps = [([each], None) for each in new]
        for ids, logprob in steps:
            self.sink.push(*detokenizer.add_tokens(ids, logprob, elapsed))
            if detokenizer.ended is not None:
                return

    def should_end(self, now: float) -> bool:
        """Whether it was stopped, or is late."""
        return self.state.should_end or self.state.clock.is_late(now, now)

    def finish(self, error: BaseException | None = None) -> None:
        """End it, and publish the rest of its text. Never raises."""
        detokenizer, clock = self._detokenizer, self.state.clock
        self._cancel(self)
        try:
            self.sink.push(*detokenizer.finish(clock.elapsed(perf_counter())))
        except BaseException as exc:
            error = exc if error is None else error
        if error is not None:
            self.sink.fail(error)
        self.finished = True
        self._row.is_form_complete = self._is_form_complete()
        if detokenizer.ended is not None:
            self._row.model_finish_reason = detokenizer.ended
        elif len(self._generated) >= self.max_new_tokens:
            self._row.model_finish_reason = FinishReason.LENGTH
        elif clock.expired_phase is not None:
            self.sink.fail(GenerationTimeout(clock.expired_phase))

    def _is_form_complete(self) -> bool:
        matcher = self._whole_matcher
        return matcher is not None and matcher.advance(self._generated) and matcher.is_complete


@uninterrupted
def publish(changed: Iterable[ActiveRequest]) -> None:
    """Publish the new text of several requests. On the loop."""
    for active in changed:
        active.sink.publish()
        if active.finished:
            active.finished_event.set()
