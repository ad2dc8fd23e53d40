"""What ``generate()`` calls: ``put()`` with each step's tokens, and ``end()``.

Needs neither torch nor transformers: a tensor is whatever has ``tolist()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, cast

from .._bridge import Producer
from .._errors import GenerationStopped
from .._streams import FinishReason, GenerationState, Logprob, TextChunk
from .detokenizer import RowDetokenizer, eos_ids
from .generate_kwargs import effective_setting

__all__ = ["TokenStreamer", "row_of"]


class TokenStreamer:
    """The streamer of a generation: takes the tokens of all its rows, and delivers their text.

    Criteria and ``put()`` see each step's tokens in an order that depends on the release of
    transformers and on the decoding method. So both hand over what they see, and each token is
    taken from the first of them.

    Args:
        state: of the stream.
        producer: delivers the text.
        rows: the detokenizers of the rows.
        token_healing: ``generate()`` changes the prompt.
        has_windows: another prompt can follow ``end()``: Whisper transcribes a recording in
            windows, each with a prompt. Any other model makes no text after its answer; the tokens
            of an audio codec, for instance.
    """

    def __init__(
        self,
        state: GenerationState,
        producer: Producer[TextChunk],
        rows: Sequence[RowDetokenizer],
        *,
        token_healing: bool = False,
        has_windows: bool = False,
    ) -> None:
        self._state = state
        self._producer = producer
        self._rows = rows
        self._token_healing = token_healing
        self._has_windows = has_windows
        self.was_called = False  # by generate(), with a prompt
        self.inner_call: tuple[Any, Mapping[str, Any]] | None = None
        self.logprobs_of: Callable[[list[int]], list[Logprob]] | None = None
        #: takes the tokens of each row that has not ended, and can refuse them
        self.check_tokens: Callable[[Sequence[Sequence[int]]], None] | None = None
        self._next_is_prompt = True
        self.is_over = False  # the answer has ended, though generate() can go on
        self._is_finished = False
        self.all_rows_finished = False  #: then generate() can undo the next step
        self._taken_in_advance = 0  # steps that a hook handed over before their put()
        self._criteria_were_called = False  # ours, by generate()
        self._puts = 0  # calls with tokens of the answer
        self.prompt_length = 0
        self._prompt_at = math.inf  # perf_counter
        self.steps = 0  # tokens that each row has been given
        # Why a criterion ended the only row, by the step. generate() can undo the latest one.
        self._reasons: dict[int, FinishReason | None] = {}

    def begin_inner(self, model: Any, generate_kwargs: Mapping[str, Any]) -> None:
        """Note that a model's own ``generate()`` calls that of an inner model, with these."""
        if self.is_over:  # it makes speech, for instance
            return
        self.inner_call = model, generate_kwargs
        for row in self._rows:
            row.set_eos(eos_ids(effective_setting(model, generate_kwargs, "eos_token_id")))

    def put(self, value: Any) -> None:
        """Take the prompt, then each step's tokens: tensors of shape ``(B, T)``, then ``(B,)``.

        Assisted decoding puts several tokens of its one row at a time, as ``(1, T)`` or ``(T,)``.

        Raises:
            GenerationStopped: for the prompt of a window that is no longer wanted; or nothing more
                is wanted of a model that does not call stopping criteria.
        """
        if self._is_finished and not self.is_over:  # from a thread that generate() has left behind
            return
        if self.is_over:
            if (deadlines := self._state.clock.deadlines) is not None:  # the model still works
                deadlines.token_made(self._producer.busy_clock())
            return
        ids = value.tolist() if hasattr(value, "tolist") else value
        is_nested = bool(ids) and isinstance(ids[0], list)
        if self._next_is_prompt:
            self._next_is_prompt = False
            self._take_prompts(ids if is_nested else [ids])
            return
        if not is_nested:
            ids = [ids] if len(self._rows) == 1 else [[each] for each in ids]
        already_seen = min(self._taken_in_advance, len(ids[0]))
        self._taken_in_advance -= already_seen
        self._take([row[already_seen:] for row in ids] if already_seen else ids)
        self._puts += 1
        # By its second step generate() has called our criteria, or it never will: then nothing but
        # this exception ends it.
        if self._puts > 1 and not self._criteria_were_called and self.should_stop():
            raise GenerationStopped

    def _take_prompts(self, prompts: Sequence[list[int]]) -> None:
        self.was_called = True
        if len(prompts) != len(self._rows):
            raise ValueError(f"generate() makes {len(prompts)} rows, not {len(self._rows)}")
        for row, prompt in zip(self._rows, prompts, strict=True):
            if self._has_windows:
                row.go_on()
            if self._token_healing:
                self._state.rows[row.number].prompt_token_ids = prompt
        self._reasons.clear()
        self._taken_in_advance = 0  # a step of the window before can have been undone
        if self.steps and self.should_stop():
            raise GenerationStopped  # or each window would begin, and cost a step
        self.prompt_length = len(prompts[0])
        self._prompt_at = perf_counter()
        self.steps = 0
        self.all_rows_finished = False

    def prompt_seconds(self) -> float:
        """For how long ``generate()`` has had the prompt; of Whisper's, that of the window."""
        return perf_counter() - self._prompt_at

    def put_draft(self, value: Any) -> None:
        """End a block of tokens that is no longer wanted, between two passes over it.

        Models that diffuse text make a whole block of tokens in many passes, and call this after
        each of them.

        Raises:
            GenerationStopped: nothing more is wanted.
        """
        if self.should_stop():
            raise GenerationStopped

    def end(self) -> None:
        """Deliver what the end of the answer makes final; of Whisper's, the end of a window."""
        if not self._has_windows:
            self.is_over = True
            self.finish()
            return
        self._next_is_prompt = True
        if not self._state.abandoned and not self.should_stop():  # else all of it is kept
            elapsed = self._state.clock.elapsed(perf_counter())
            self._deliver(row.end_window(elapsed) for row in self._rows)

    def should_stop(self) -> bool:
        """Whether nothing more is wanted of any row, or of what ``generate()`` makes after them."""
        if self._producer.should_stop():
            return True
        return not self.is_over and all(row.should_stop for row in self._rows)

    def begin_criteria(self) -> None:
        """Note that ``generate()`` calls our criteria, so that they can end it."""
        self._criteria_were_called = True

    def end_criteria(self, stopped: Sequence[bool]) -> None:
        """Take the answer of our criteria for each row: whether it ends with this step."""
        self.all_rows_finished = all(stopped[row.number] or row.has_ended for row in self._rows)

    def step_of(self, sequences: Any) -> int:
        """The number of the step that made the last of these ids, of shape ``(B, T)``."""
        return len(sequences[0]) - self.prompt_length

    def take_new(self, sequences: Any) -> None:
        """Take the new ids, if any, among those that hooks see before ``put()`` does."""
        start = self.prompt_length + self.steps
        if len(sequences[0]) <= start:
            return
        if hasattr(sequences, "tolist"):
            new = sequences[:, start:].tolist()
        else:
            new = [row[start:] for row in sequences]
        self._taken_in_advance += len(new[0])
        self._take(new)

    def take_returned(self, rows: Sequence[list[int]]) -> None:
        """Take all tokens of each row, which ``generate()`` returned and did not stream."""
        now = perf_counter()
        if self.check_tokens is not None:
            self.check_tokens(rows)
        self.steps = max(map(len, rows))
        self._state.clock.tokens(self.steps, now, self._producer.busy_clock())
        elapsed = self._state.clock.elapsed(now)
        self._deliver(
            row.add_tokens(ids, None, elapsed) for row, ids in zip(self._rows, rows, strict=True)
        )

    def mark_row_finished(
        self, number: int, sequences: Any, reason: FinishReason | None = None
    ) -> None:
        """End a row with the step that a criterion was called for, unless it has ended before."""
        row = self._rows[number]
        step = len(sequences[number]) - self.prompt_length
        if len(self._rows) == 1:
            self._reasons[step] = reason
        else:
            row.end_at(step, reason)

    def go_on(self) -> None:
        """Note that the only row was cut after the end of a window, which did not end its text."""
        self._rows[0].go_on()
        self._reasons.clear()

    def finish(self) -> None:
        """Deliver what is still held back, once: the answer has ended, or ``generate()`` has."""
        if self._is_finished:
            return
        self._settle_ends()
        if self._state.abandoned:
            return
        self._is_finished = True
        elapsed = self._state.clock.elapsed(perf_counter())
        self._deliver(row.finish(elapsed) for row in self._rows)

    def _settle_ends(self) -> None:
        """Keep the ends that criteria have marked, but those with a step that was undone."""
        if len(self._rows) == 1:
            self._rows[0].stopped_by = self._reasons.get(self.steps)
            return
        if self.was_called:
            for row in self._rows:
                row.undo_end_after(self.steps)

    def _take(self, step: Sequence[Sequence[int]]) -> None:
        """Take the tokens of each row, the same number of each."""
        if not step[0]:
            return
        now = perf_counter()
        state = self._state
        own = [row.own_part(ids, self.steps) for row, ids in zip(self._rows, step, strict=True)]
        if self.check_tokens is not None:
            self.check_tokens(own)
        unfinished = [(row, ids) for row, ids in zip(self._rows, own, strict=True) if ids]
        self.steps += len(step[0])
        state.clock.tokens(len(step[0]), now, self._producer.busy_clock())
        logprobs = self.logprobs_of([ids[-1] for ids in step]) if self.logprobs_of else None
        if state.abandoned:
            for row, ids in unfinished:
                state.rows[row.number].computed_tokens += len(ids)
            return
        elapsed = state.clock.elapsed(now)
        self._deliver(
            row.add_tokens(ids, logprobs[row.number] if logprobs else None, elapsed)
            for row, ids in unfinished
        )
        if len(self._rows) > 1:
            for row, _ in unfinished:
                if row.ended_in_tokens:  # a criterion can have marked a step that comes later
                    row.end_at(self.steps)

    def _deliver(self, chunks: Iterable[list[TextChunk]]) -> None:
        ready = [chunk for each in chunks for chunk in each]
        if ready:
            self._producer.deliver(*ready)


def row_of(value: Any, name: str) -> list[int]:
    """The ids of the only row of a tensor or a list. Raises ValueError where there are several."""
    ids = value.tolist() if hasattr(value, "tolist") else list(value)
    if ids and isinstance(ids[0], list):
        if len(ids) > 1:
            raise ValueError(f"{name} streams one sequence, and generate() makes {len(ids)}")
        ids = ids[0]
    return cast("list[int]", ids)
