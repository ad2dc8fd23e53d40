"""From the tokens of one sequence to its chunks: decoder, stop strings, response parser."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from .._model import is_encoder_decoder
from .._prompts import Prompt, TokenIds
from .._streams import FinishReason, Logprob, Row, TextChunk
from .._text import ContinuationDecoder, Delta, StopStrings, TextDecoder
from .shown_stop_strings import ShownStopStrings
from .whisper import WhisperWindowBuffer

__all__ = ["RowDetokenizer", "continues_prompt", "eos_ids"]


class RowDetokenizer:
    """One sequence's way from tokens to text: decoder, stop strings, and how it ended.

    With a response template the parser comes last: stop strings are searched in all the text that
    the model generates, in any field, the markers between the fields included.

    Args:
        number: of the row.
        row: its state.
        new_decoder: makes a decoder of its tokens.
        stop_strings: end the text, and are not part of it.
        shown_stop_strings: those of ``generate()`` itself, which are part of the text, if any.
        eos_token_ids: end the row.
        skips_eos: they are never text, whatever the decoder makes of them.
        window: of a model that transcribes a recording in windows.
        stop_ids: tokens that end the text as stop strings do, each with its string.
    """

    def __init__(
        self,
        number: int,
        row: Row,
        new_decoder: Callable[[], TextDecoder],
        stop_strings: StopStrings,
        shown_stop_strings: ShownStopStrings | None,
        eos_token_ids: Collection[int],
        skips_eos: bool = False,
        window: WhisperWindowBuffer | None = None,
        stop_ids: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.number = number
        self._row = row
        self._new_decoder = new_decoder
        self._stop_strings = stop_strings
        self._shown_stop_strings = shown_stop_strings
        self._eos_token_ids = frozenset(eos_token_ids)
        self._skips_eos = skips_eos
        self._stop_ids = stop_ids
        self._stopped_by_id: str | None = None  # the string of the token that ended the text
        self._skipped: list[int] = []
        self.window = window
        self._pending: list[int] = []  # ids whose text has not been delivered
        self._logprobs: list[Logprob] | None = None
        self.ended: FinishReason | None = None
        # In a batch, generate() pads a row that has ended, often with pad tokens that are EOS as
        # well. Nothing after this many steps belongs to the row.
        self.last_step = math.inf
        # Why a criterion of generate() ended the row, if one did.
        self.stopped_by: FinishReason | None = None
        # The reasons that end the row as soon as its tokens show them. The tokens show others too,
        # but criteria of generate() decide about those.
        self.ends_in_tokens = frozenset({FinishReason.EOS, FinishReason.STOP_STRING})

    @cached_property
    def _decoder(self) -> TextDecoder:
        # Made when the first tokens come: until then token healing can change the prompt.
        prompt = self._row.prompt_token_ids
        if self._row.continues_prompt and prompt:
            return ContinuationDecoder(self._new_decoder, prompt)
        return self._new_decoder()

    def add_tokens(
        self, token_ids: Sequence[int], logprob: Logprob | None, elapsed: float
    ) -> list[TextChunk]:
        """Take new tokens, and return the text that they make final."""
        self.go_on()
        if not self._eos_token_ids.isdisjoint(token_ids):
            self.ended = FinishReason.EOS
        logprobs = [] if logprob is None else [logprob]
        if self.window is not None:
            token_ids, logprobs = self.window.take(token_ids, logprobs)
        return self._process(token_ids, logprobs, elapsed)

    def own_part(self, token_ids: Sequence[int], steps: int) -> Sequence[int]:
        """Those of new tokens that belong to the row, after this many *steps*."""
        if self.last_step == math.inf:
            return token_ids
        return token_ids[: max(0, int(self.last_step) - steps)]

    def end_at(self, step: int, reason: FinishReason | None = None) -> None:
        """End the row with this step, unless it has ended before: by a criterion, for *reason*."""
        if step < self.last_step:
            self.last_step, self.stopped_by = step, reason

    def undo_end_after(self, steps: int) -> None:
        """Undo an end with a later step than these: ``generate()`` has undone that step."""
        if steps < self.last_step < math.inf:
            self.last_step, self.stopped_by = math.inf, None

    def set_eos(self, token_ids: Collection[int]) -> None:
        """Let these end the row, in place of those that the caller's arguments name."""
        self._eos_token_ids = frozenset(token_ids)

    def end_window(self, elapsed: float) -> list[TextChunk]:
        """Return what the end of a window makes final, if there are windows."""
        return [] if self.window is None else self._process(*self.window.end(), elapsed)

    def go_on(self) -> None:
        """Undo the end of the row, since it goes on: only a window has ended, or nothing has.

        A stop string of ours ends it for good.
        """
        if self.ended is None or self._is_cut:
            return
        self.ended = self._row.matched_stop_string = None
        if self._shown_stop_strings is not None:
            self._shown_stop_strings.go_on()

    @property
    def should_stop(self) -> bool:
        """Whether nothing more of it is wanted, whatever the model would still generate."""
        return self._row.stop_requested or self._is_cut

    @property
    def has_ended(self) -> bool:
        """Whether ``generate()`` goes on without this row, or only fills it up."""
        return self.ended_in_tokens or self.last_step != math.inf

    @property
    def ended_in_tokens(self) -> bool:
        """Whether the tokens so far end the row: by a stop string of ours, or as ``generate()``."""
        return self._is_cut or self.ended in self.ends_in_tokens

    @property
    def end_reason(self) -> FinishReason | None:
        """What has ended the row: its tokens, or a criterion."""
        return self.ended if self.ended_in_tokens else self.stopped_by

    @property
    def _is_cut(self) -> bool:
        """Whether a stop string of ours has ended the text."""
        return self._stopped_by_id is not None or self._stop_strings.matched is not None

    def _process(
        self, token_ids: Sequence[int], logprobs: Sequence[Logprob], elapsed: float
    ) -> list[TextChunk]:
        self._row.computed_tokens += len(token_ids)  # without those that are taken back
        self._pending.extend(token_ids)
        if logprobs:
            self._logprobs = [*(self._logprobs or ()), *logprobs]
        if self._shown_stop_strings is not None:
            self._shown_stop_strings.add_tokens(token_ids)
        token_ids = self._before_stop_id(token_ids)
        if self._skips_eos and (skipped := self._eos_token_ids):
            self._skipped += [each for each in token_ids if each in skipped]
            token_ids = [each for each in token_ids if each not in skipped]
        text = self._apply_stop_strings(self._decoder.decode(token_ids))
        self._note_stop_strings()
        if not text:
            return []
        if (response := self._row.response) is not None:
            return [self._delta_chunk(delta, elapsed) for delta in response.feed(text)]
        return [self._chunk(text, elapsed)]

    def finish(self, elapsed: float) -> list[TextChunk]:
        """Return what is still held back, and the ids that no chunk has taken along."""
        chunks = [] if self.window is None else self._process(*self.window.flush(), elapsed)
        text = self._apply_stop_strings(self._decoder.flush()) + self._take_held_text()
        if self._shown_stop_strings is not None:
            self._shown_stop_strings.finish()
        self._note_stop_strings()
        if self.end_reason is not FinishReason.STOP_STRING:  # one in the text that ended nothing
            self._row.matched_stop_string = None
        if (response := self._row.response) is not None:
            deltas = response.feed(text)
            deltas += response.finish(
                has_ended=self.ended is FinishReason.EOS,
                end_ids=self._skipped,
                stop_string=self._stop_strings.matched,
            )
            chunks += [self._delta_chunk(delta, elapsed) for delta in deltas]
            text = ""
        return [*chunks, self._chunk(text, elapsed)] if text or self._pending else chunks

    def _take_held_text(self) -> str:
        """Return what the stop strings still hold back, now that the text has ended.

        The token that ended it can complete a stop string, though it is not text itself.
        """
        held = self._stop_strings.held
        if self.ended is FinishReason.EOS and self._skipped and self._row.response is None:
            decoder = self._new_decoder()
            shown = self._apply_stop_strings(decoder.decode(self._skipped[-1:]) + decoder.flush())
            if self._stop_strings.matched is not None:
                return shown[: len(held)]
        self._stop_strings.flush()
        return held

    def _before_stop_id(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The tokens before one that ends the text; all of them if there is none."""
        if self._stopped_by_id is not None:
            return ()
        for position, token_id in enumerate(token_ids):
            if token_id in self._stop_ids:
                self._stopped_by_id = self._stop_ids[token_id]
                return token_ids[:position]
        return token_ids

    def _apply_stop_strings(self, text: str) -> str:
        return self._stop_strings.feed(text) if text and self._stop_strings else text

    def _note_stop_strings(self) -> None:
        others = (self._stop_strings, self._shown_stop_strings)
        matches = [each.matched for each in others if each is not None]
        # Strings come last: one in the text was complete before the token that ended the text.
        for matched in (self._stopped_by_id, *matches):
            if matched is not None:
                self.ended = FinishReason.STOP_STRING
                self._row.matched_stop_string = matched

    def _chunk(
        self, text: str, elapsed: float, field: str | None = None, value: Any = None
    ) -> TextChunk:
        logprobs = self._logprobs
        chunk = TextChunk(
            text,
            self._pending,
            logprobs=None if logprobs is None else (each for each, _ in logprobs),
            top_logprobs=None if logprobs is None else (top for _, top in logprobs),
            row=self.number,
            elapsed=elapsed,
            field=field,
            value=value,
        )
        self._pending.clear()
        # With logprobs they are never None again: a chunk without tokens has an empty list.
        self._logprobs = None if logprobs is None else []
        return chunk

    def _delta_chunk(self, delta: Delta, elapsed: float) -> TextChunk:
        value = delta.value
        is_answer = delta.field == "content" and isinstance(value, str)
        chunk = self._chunk(value if is_answer else "", elapsed, delta.field, value)
        chunk.is_complete_value = delta.is_complete
        return chunk


def continues_prompt(
    model: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether an answer continues the prompt's text. If not, it is a text of its own.

    An answer to chat messages is one of its own, unless it is the rest of the last message. So is
    an answer to model inputs, since they do not show what they were made of, and the answer of an
    encoder-decoder, whose decoder has not seen the prompt.
    """
    if isinstance(prompt, Mapping) or is_encoder_decoder(model):
        return False
    kwargs = chat_template_kwargs or {}
    return isinstance(prompt, str | TokenIds) or bool(kwargs.get("continue_final_message"))


def eos_ids(value: Any) -> list[int]:
    """The ids in an ``eos_token_id``: None, a number, a list or a tensor."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]
