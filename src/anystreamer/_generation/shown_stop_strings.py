"""The stop strings of generate() itself (``stop_strings=``), which are part of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from .._text import ContinuationDecoder, StopStrings, TextDecoder, validate_stop_strings

__all__ = ["ShownStopStrings"]

# Tokens of the prompt that a stop string can begin in: four for each of its characters, since a
# character has up to four bytes, and some more, since the first ones can be parts of a character.
TOKENS_OF_CHARACTER = 4
SPARE_TOKENS = 16


class ShownStopStrings:
    """Finds them as ``generate()`` does: in the text with its special tokens.

    Like ``generate()`` it also finds one that begins in the prompt, and ends after it.

    Args:
        strings: what is searched.
        new_decoder: makes a decoder that does not skip special tokens.
        prompt_ids: returns the tokens before the text. Called when the text begins: until then
            token healing can change the prompt.
    """

    def __init__(
        self,
        strings: str | Sequence[str],
        new_decoder: Callable[[], TextDecoder],
        prompt_ids: Callable[[], Sequence[int]],
    ) -> None:
        self._strings = validate_stop_strings(strings)
        self._new_decoder = new_decoder
        self._prompt_ids = prompt_ids
        self._latest = ""  # the end of the text, as long as the longest string

    @cached_property
    def _decoder(self) -> TextDecoder:
        prompt_ids = self._prompt_ids()
        if prompt_ids:
            return ContinuationDecoder(self._new_decoder, prompt_ids)
        return self._new_decoder()

    @cached_property
    def _stop_strings(self) -> StopStrings:
        decoder = self._new_decoder()
        end = self._prompt_ids()[-(TOKENS_OF_CHARACTER * self._longest + SPARE_TOKENS) :]
        return StopStrings(self._strings, after=decoder.decode(end) + decoder.flush())

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._strings))

    @property
    def matched(self) -> str | None:
        """The stop string that was completed, if any."""
        return self._stop_strings.matched

    def add_tokens(self, token_ids: Sequence[int]) -> None:
        """Search the text of new tokens."""
        self._search(self._decoder.decode(token_ids))

    def finish(self) -> None:
        """Search the text that the decoder still holds back."""
        self._search(self._decoder.flush())

    def go_on(self) -> None:
        """Search for the next one, if ``generate()`` was not ended by the one that was found.

        It compares tokens, and not their text: half a character is not U+FFFD for it.
        """
        if self.matched is not None:
            self._stop_strings = StopStrings(self._strings, after=self._latest)

    def _search(self, text: str) -> None:
        self._stop_strings.feed(text)
        self._latest = (self._latest + text)[-self._longest :]
