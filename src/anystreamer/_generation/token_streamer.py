"""What ``generate()`` calls: ``put()`` with each step's tokens, and ``end()``.

Needs neither torch nor transformers: a tensor is whatever has ``tolist()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, cast

from .._bridge import Producer
from .._errors import GenerationStopped
from .._streams import GenerationStream, Logprob, TextChunk
from .detokenizer import RowDetokenizer

__all__ = ["TokenStreamer", "row_of"]


class TokenStreamer:
    """The streamer of a generation: tokens of all its rows come in, pieces of text go out.

    Criteria and ``put()`` see each step's tokens in an order that depends on the release of
    transformers and on the decoding method. So both hand over what they see, and whoever comes
    first is heard.
    """

    def __init__(
        self,
        stream: GenerationStream,
        producer: Producer[TextChunk],
        texts: Sequence[RowDetokenizer],
    ) -> None:
        self._stream = stream
        self._producer = producer
        self.texts = texts
        self.on_tokens: Callable[[], None] | None = None
        self.logprobs_of: Callable[[list[int]], list[Logprob]] | None = None
        self._next_is_prompt = True
        self.token_healing = False  # generate() changes it
        self.all_rows_finished = False  # then the scores of the next step are not read
        self._taken_in_advance = 0  # steps that a criterion handed over before their put()
        self.prompt_length = 0
        self.steps = 0  # how many tokens each row has been given
        self._taken_at: float | None = None  # when the latest of them came

    def put(self, value: Any) -> None:
        """Take the prompt, then each step's tokens: tensors of shape ``(B, T)``, then ``(B,)``.

        Assisted decoding puts several tokens of its one row at a time, as ``(1, T)`` or ``(T,)``.

        Raises:
            GenerationStopped: for the prompt of a window that nobody wants any more.
        """
        ids = value.tolist() if hasattr(value, "tolist") else value
        is_nested = bool(ids) and isinstance(ids[0], list)
        if self._next_is_prompt:
            self._next_is_prompt = False
            rows = ids if is_nested else [ids]
            if len(rows) != len(self.texts):
                raise ValueError(f"generate() makes {len(rows)} rows, not {len(self.texts)}")
            for text, prompt in zip(self.texts, rows, strict=True):
                text.begin_window()
                if self.token_healing:
                    self._stream._rows[text.index].prompt_token_ids = prompt
            if self.steps and self.is_to_stop():
                raise GenerationStopped  # or each window would begin, and cost a step
            self.prompt_length = len(rows[0])
            self.steps = 0
            self.all_rows_finished = False
            return
        if not is_nested:
            ids = [ids] if len(self.texts) == 1 else [[each] for each in ids]
        already_seen = min(self._taken_in_advance, len(ids[0]))
        self._taken_in_advance -= already_seen
        self._take([row[already_seen:] for row in ids] if already_seen else ids)

    def end(self) -> None:
        """Expect another prompt: Whisper hears a recording in windows, each with its own."""
        self._next_is_prompt = True
        if self.texts[0].window is None or self._stream._cancelled:
            return
        if not self.is_to_stop():  # else all that was said is kept
            elapsed = perf_counter() - self._stream._called_at
            self._deliver(text.end_window(elapsed) for text in self.texts)

    def is_to_stop(self) -> bool:
        """Whether nothing more is wanted of any row."""
        return self._producer.should_stop() or all(text.is_to_stop for text in self.texts)

    def take_from_criteria(self, sequences: Any) -> None:
        """Take what a criterion sees, of shape ``(B, T)``, beyond what has been taken before."""
        start = self.prompt_length + self.steps
        if hasattr(sequences, "tolist"):
            new = sequences[:, start:].tolist()
        else:
            new = [row[start:] for row in sequences]
        self._taken_in_advance += len(new[0])
        self._take(new)

    def mark_row_finished(self, index: int, sequences: Any) -> None:
        """End a row with the step that a criterion is being asked about."""
        text = self.texts[index]
        text.last_step = min(text.last_step, len(sequences[index]) - self.prompt_length)

    def finish(self) -> None:
        """Deliver what is still held back: ``generate()`` has returned or raised."""
        if self._stream._cancelled:
            return
        elapsed = perf_counter() - self._stream._called_at
        self._deliver(text.finish(elapsed) for text in self.texts)

    def _take(self, rows: Sequence[Sequence[int]]) -> None:
        if not rows[0]:
            return
        now = perf_counter()
        stream = self._stream
        if stream._first_token_at is None:
            stream._first_token_at = now
        if stream._meter is not None:
            stream._meter(len(rows[0]), now, self._taken_at)
        self._taken_at = now
        unfinished = [
            (text, ids)
            for text, ids in zip(self.texts, rows, strict=True)
            if text.last_step > self.steps
        ]
        self.steps += len(rows[0])
        if self.on_tokens is not None:
            self.on_tokens()
        logprobs = self.logprobs_of([ids[-1] for ids in rows]) if self.logprobs_of else None
        if stream._cancelled:
            for text, ids in unfinished:
                stream._rows[text.index].computed_tokens += len(ids)
            return
        elapsed = now - stream._called_at
        self._deliver(
            text.take(ids, logprobs[text.index] if logprobs else None, elapsed)
            for text, ids in unfinished
        )
        if len(self.texts) > 1:
            for text, _ in unfinished:
                if text.ended is not None:
                    text.last_step = self.steps

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
