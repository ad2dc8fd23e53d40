"""What ``generate()`` calls: ``put()`` with each step's tokens, and ``end()``.

Needs neither torch nor transformers: a tensor is whatever has ``tolist()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from time import perf_counter
from typing import Any, cast

from ._bridge import Producer
from ._errors import GenerationStopped
from ._streams import FinishReason, GenerationStream, Logprob, Row, TextChunk
from ._text import Piece, StopStrings, TextDecoder

__all__ = ["RowText", "TokenStreamer", "WindowTokens", "eos_ids", "row_of"]


class WindowTokens:
    """Holds back the tokens that Whisper's own ``generate()`` may take back.

    It hears a recording in windows, and the timestamps around each phrase tell it where to begin
    the next one. What comes after a window's last pair of timestamps, and is not closed by another
    timestamp, is thrown away and heard again.
    """

    def __init__(self, first_timestamp: int, eos_token_ids: Collection[int]) -> None:
        self._first_timestamp = first_timestamp  # all ids from here on are timestamps
        self._eos_token_ids = frozenset(eos_token_ids)
        self._ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._has_pair = False
        self._after_timestamp = False

    def take(
        self, token_ids: Iterable[int], logprobs: Iterable[Logprob]
    ) -> tuple[list[int], list[Logprob]]:
        """Take new tokens, and return those that are certain."""
        certain = 0
        self._logprobs += logprobs
        for token_id in token_ids:
            self._ids.append(token_id)
            is_timestamp = token_id >= self._first_timestamp
            is_pair = is_timestamp and self._after_timestamp
            self._after_timestamp = is_timestamp
            self._has_pair |= is_pair
            if is_pair or not self._has_pair:
                certain = len(self._ids)
        return self._release(certain)

    def end(self) -> tuple[list[int], list[Logprob]]:
        """End a window. Return what is kept of it, and the token that ended it."""
        said = len(self._ids)
        if said and self._ids[-1] in self._eos_token_ids:
            said -= 1
        if said and self._ids[said - 1] < self._first_timestamp:
            self._release(said)
        self._has_pair = self._after_timestamp = False
        return self.flush()

    def flush(self) -> tuple[list[int], list[Logprob]]:
        """Return all that is held back."""
        return self._release(len(self._ids))

    def _release(self, count: int) -> tuple[list[int], list[Logprob]]:
        released = self._ids[:count], self._logprobs[:count]
        del self._ids[:count], self._logprobs[:count]
        return released


class RowText:
    """One sequence's way from tokens to text: decoder, stop strings, and how it ended.

    With a response template the parser comes last: stop strings are looked for in all that the
    model says, in whichever field, the markers between the fields included.
    """

    def __init__(
        self,
        index: int,
        row: Row,
        decoder: TextDecoder,
        stop_strings: StopStrings,
        shown_stop_strings: StopStrings,
        eos_token_ids: Collection[int],
        skipped_token_ids: Collection[int] = (),
        window: WindowTokens | None = None,
    ) -> None:
        self.index = index
        self._row = row
        self._decoder = decoder
        self._stop_strings = stop_strings
        self._shown_stop_strings = shown_stop_strings  # generate()'s own: part of the text
        self._eos_token_ids = frozenset(eos_token_ids)
        self._skipped_token_ids = frozenset(skipped_token_ids)  # special, not to become text
        self._skipped: list[int] = []
        self.window = window  # of a model that hears a recording in windows
        self._pending: list[int] = []  # ids whose text has not been delivered
        self._logprobs: list[Logprob] | None = None
        self.ended: FinishReason | None = None
        # generate() goes on filling up a row that has ended beside others, often with pad tokens
        # that are EOS as well. Nothing after this many steps is its own.
        self.last_step = math.inf

    def take(
        self, token_ids: Sequence[int], logprob: Logprob | None, elapsed: float
    ) -> list[TextChunk]:
        """Take new tokens, and return the text that they make final."""
        if not self._eos_token_ids.isdisjoint(token_ids):
            self.ended = FinishReason.EOS
        logprobs = [] if logprob is None else [logprob]
        if self.window is not None:
            token_ids, logprobs = self.window.take(token_ids, logprobs)
        return self._hear(token_ids, logprobs, elapsed)

    def end_window(self, elapsed: float) -> list[TextChunk]:
        """Return what has become final by the end of a window, if there are windows."""
        return [] if self.window is None else self._hear(*self.window.end(), elapsed)

    def begin_window(self) -> None:
        """Take back that the text has ended where only a window has. A stop string ends it all."""
        if self.ended is not FinishReason.STOP_STRING:
            self.ended = None

    @property
    def is_to_stop(self) -> bool:
        """Whether nothing more of it is wanted, whatever the model still has to say."""
        return self._row.stop_requested or self.ended is FinishReason.STOP_STRING

    def _hear(
        self, token_ids: Sequence[int], logprobs: Sequence[Logprob], elapsed: float
    ) -> list[TextChunk]:
        self._row.computed_tokens += len(token_ids)  # none that is taken back
        self._pending.extend(token_ids)
        if logprobs:
            self._logprobs = [*(self._logprobs or ()), *logprobs]
        if self._skipped_token_ids:
            skipped = self._skipped_token_ids
            self._skipped += [each for each in token_ids if each in skipped]
            token_ids = [each for each in token_ids if each not in skipped]
        text = self._show(self._decoder.decode(token_ids))
        if not text:
            return []
        if (response := self._row.response) is not None:
            return [self._piece(piece, elapsed) for piece in response.feed(text)]
        return [self._chunk(text, elapsed)]

    def finish(self, elapsed: float) -> list[TextChunk]:
        """Return what is still held back, and the ids that no text has taken along."""
        chunks = [] if self.window is None else self._hear(*self.window.flush(), elapsed)
        text = self._show(self._decoder.flush()) + self._stop_strings.flush()
        if (response := self._row.response) is not None:
            pieces = response.feed(text)
            pieces += response.finish(
                has_ended=self.ended is FinishReason.EOS,
                end_ids=self._skipped,
                stop_string=self._stop_strings.matched,
            )
            chunks += [self._piece(piece, elapsed) for piece in pieces]
            text = ""
        return [*chunks, self._chunk(text, elapsed)] if text or self._pending else chunks

    def _show(self, text: str) -> str:
        if not text:
            return text
        shown = self._stop_strings.feed(text) if self._stop_strings else text
        if self._shown_stop_strings:
            self._shown_stop_strings.feed(text)
        for strings in (self._stop_strings, self._shown_stop_strings):
            if strings.matched is not None:
                self.ended = FinishReason.STOP_STRING
                self._row.matched = strings.matched
        return shown

    def _chunk(
        self, text: str, elapsed: float, field: str | None = None, value: Any = None
    ) -> TextChunk:
        logprobs = self._logprobs
        chunk = TextChunk(
            text,
            self._pending,
            logprobs=None if logprobs is None else (each for each, _ in logprobs),
            top_logprobs=None if logprobs is None else (top for _, top in logprobs),
            index=self.index,
            elapsed=elapsed,
            field=field,
            value=value,
        )
        self._pending.clear()
        # Once asked for they are never None: a chunk with no tokens has none of them.
        self._logprobs = None if logprobs is None else []
        return chunk

    def _piece(self, piece: Piece, elapsed: float) -> TextChunk:
        value = piece.value
        is_answer = piece.field == "content" and isinstance(value, str)
        chunk = self._chunk(value if is_answer else "", elapsed, piece.field, value)
        chunk._is_whole = piece.is_whole
        return chunk


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
        texts: Sequence[RowText],
    ) -> None:
        self._stream = stream
        self._producer = producer
        self.texts = texts
        self.on_tokens: Callable[[], None] | None = None
        self.logprobs_of: Callable[[list[int]], list[Logprob]] | None = None
        self._next_is_prompt = True
        self.heals_prompt = False  # generate() changes it
        self.is_over = False  # nobody is to look at the scores of another step of this prompt
        self._ahead = 0  # steps of coming put()s that a criterion has handed over already
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
                if self.heals_prompt:
                    self._stream._rows[text.index].prompt_token_ids = prompt
            if self.steps and self.is_to_stop():
                raise GenerationStopped  # or each window would begin, and cost a step
            self.prompt_length = len(rows[0])
            self.steps = 0
            self.is_over = False
            return
        if not is_nested:
            ids = [ids] if len(self.texts) == 1 else [[each] for each in ids]
        heard = min(self._ahead, len(ids[0]))
        self._ahead -= heard
        self._take([row[heard:] for row in ids] if heard else ids)

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

    def look(self, sequences: Any) -> None:
        """Take what a criterion sees, of shape ``(B, T)``, beyond what has been taken before."""
        start = self.prompt_length + self.steps
        if hasattr(sequences, "tolist"):
            new = sequences[:, start:].tolist()
        else:
            new = [row[start:] for row in sequences]
        self._ahead += len(new[0])
        self._take(new)

    def end_row(self, index: int, sequences: Any) -> None:
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
        heard = [
            (text, ids)
            for text, ids in zip(self.texts, rows, strict=True)
            if text.last_step > self.steps
        ]
        self.steps += len(rows[0])
        if self.on_tokens is not None:
            self.on_tokens()
        logprobs = self.logprobs_of([ids[-1] for ids in rows]) if self.logprobs_of else None
        if stream._cancelled:
            for text, ids in heard:
                stream._rows[text.index].computed_tokens += len(ids)
            return
        elapsed = now - stream._called_at
        self._deliver(
            text.take(ids, logprobs[text.index] if logprobs else None, elapsed)
            for text, ids in heard
        )
        if len(self.texts) > 1:
            for text, _ in heard:
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


def eos_ids(value: Any) -> list[int]:
    """The ids in an ``eos_token_id``: None, a number, a list or a tensor."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]
