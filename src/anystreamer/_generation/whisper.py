"""What only Whisper needs: it transcribes a recording in windows, and takes tokens back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .._streams import Logprob
from .generate_kwargs import effective_setting

__all__ = [
    "WhisperWindowBuffer",
    "check_whisper_fallback",
    "check_whisper_rows",
    "is_whisper",
    "uses_windows",
    "whisper_window_buffer",
]


def is_whisper(model: Any) -> bool:
    """Whether ``generate()`` is Whisper's own."""
    return hasattr(model, "generate_with_fallback")


def uses_windows(model: Any, generate_kwargs: Mapping[str, Any]) -> bool:
    """Whether ``generate()`` calls the common one for each window of a recording."""
    return is_whisper(model) and not _setting(model, generate_kwargs, "force_unique_generate_call")


def check_whisper_fallback(model: Any, generate_kwargs: Mapping[str, Any]) -> None:
    """Refuse what makes Whisper take back a window that it has transcribed to its end.

    Raises:
        ValueError: the setting, and what to do instead.
    """
    temperature = generate_kwargs.get("temperature")
    thresholds = ("compression_ratio_threshold", "logprob_threshold")
    if (
        isinstance(temperature, list | tuple)
        and len(temperature) > 1
        and any(_setting(model, generate_kwargs, name) is not None for name in thresholds)
    ):
        raise ValueError(
            f"temperature={temperature}: with a threshold, Whisper takes back the text of one "
            "temperature and transcribes again at the next; pass one temperature"
        )
    if (silence := _setting(model, generate_kwargs, "no_speech_threshold")) is not None:
        raise ValueError(
            f"no_speech_threshold={silence}: Whisper takes back text that it finds to be silence; "
            "leave it out"
        )


def check_whisper_rows(
    model: Any, generate_kwargs: Mapping[str, Any], inputs: Mapping[str, Any], rows: int
) -> None:
    """Refuse several rows where Whisper drops one of them without an error.

    Raises:
        ValueError: what to do instead.
    """
    if rows == 1 or not uses_windows(model, generate_kwargs):
        return
    frames = getattr(inputs.get("input_features"), "shape", (0,))[-1]
    is_long = frames > 2 * model.config.max_source_positions  # the size of its encoder
    if is_long or _setting(model, generate_kwargs, "return_timestamps"):
        raise ValueError(
            f"{rows} rows of long recordings or with return_timestamps=True: Whisper drops a row "
            "at the end of its recording, and does not say which one; "
            "stream one recording at a time, with stream_text()"
        )


def whisper_window_buffer(
    model: Any, generate_kwargs: Mapping[str, Any], eos_token_ids: Collection[int]
) -> WhisperWindowBuffer | None:
    """The buffer for one row of a generation; None for a model that has no windows."""
    if not uses_windows(model, generate_kwargs):
        return None
    no_timestamps = _setting(model, generate_kwargs, "no_timestamps_token_id")
    return None if no_timestamps is None else WhisperWindowBuffer(no_timestamps + 1, eos_token_ids)


def _setting(model: Any, generate_kwargs: Mapping[str, Any], name: str) -> Any:
    # Whisper's own generate() names these as parameters, and takes None for "not given".
    given = {key: value for key, value in generate_kwargs.items() if value is not None}
    return effective_setting(model, given, name)


class WhisperWindowBuffer:
    """Holds back the tokens that Whisper's own ``generate()`` can still take back.

    It transcribes a recording in windows, and the timestamps around each phrase say where the next
    window begins. Tokens after a window's last pair of timestamps that no other timestamp closes
    are dropped, and transcribed again in the next window.
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
        """End a window. Return the tokens of it that stay, and the token that ended it."""
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
