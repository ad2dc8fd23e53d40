"""What only Whisper needs: it transcribes a recording in windows, and takes tokens back."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .._streams import Logprob

__all__ = ["WhisperWindowBuffer"]


class WhisperWindowBuffer:
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
        kept = len(self._ids)
        if kept and self._ids[-1] in self._eos_token_ids:
            kept -= 1
        if kept and self._ids[kept - 1] < self._first_timestamp:
            self._release(kept)
        self._has_pair = self._after_timestamp = False
        return self.flush()

    def flush(self) -> tuple[list[int], list[Logprob]]:
        """Return all that is held back."""
        return self._release(len(self._ids))

    def _release(self, count: int) -> tuple[list[int], list[Logprob]]:
        released = self._ids[:count], self._logprobs[:count]
        del self._ids[:count], self._logprobs[:count]
        return released
