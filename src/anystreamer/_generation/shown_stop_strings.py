"""The stop strings of generate() itself (``stop_strings=``), which are part of the text."""

from __future__ import annotations

from collections.abc import Sequence

from .._text import StopStrings, TextDecoder

__all__ = ["ShownStopStrings"]


class ShownStopStrings:
    """Finds them as ``generate()`` does: in the text with its special tokens.

    Args:
        stop_strings: what is searched.
        decoder: does not skip special tokens.
    """

    def __init__(self, stop_strings: StopStrings, decoder: TextDecoder) -> None:
        self._stop_strings = stop_strings
        self._decoder = decoder

    @property
    def matched(self) -> str | None:
        """The stop string that was completed, if any."""
        return self._stop_strings.matched

    def add_tokens(self, token_ids: Sequence[int]) -> None:
        """Search the text of new tokens."""
        self._stop_strings.feed(self._decoder.decode(token_ids))

    def finish(self) -> None:
        """Search the text that the decoder still holds back."""
        self._stop_strings.feed(self._decoder.flush())
