"""The new tokens in the result of a generate() that never called its streamer.

Models that transcribe without a decoder (CTC) do not call it, and code in a ``custom_generate=``
folder can forget it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["returned_tokens", "sequences_of"]


def returned_tokens(
    output: Any,
    rows: int,
    prompt_ids: Any = None,
    decoder_start_token_id: int | None = None,
    eos_token_ids: Collection[int] = (),
) -> list[list[int]]:
    """The new tokens of each row.

    Args:
        output: the result: ids of shape ``(B, T)``, or something with such ``sequences``.
        rows: their expected number.
        prompt_ids: of shape ``(B, T)``, which a decoder repeats in its result.
        decoder_start_token_id: the first token of a decoder that has no prompt.
        eos_token_ids: what follows them in a row of several fills it up to the others' length.

    Raises:
        RuntimeError: the result does not have ids for each row.
    """
    ids = _as_list(sequences_of(output))
    if _is_ids(ids) and rows == 1:
        ids = [ids]
    if not isinstance(ids, list) or len(ids) != rows or not all(map(_is_ids, ids)):
        raise RuntimeError(
            f"generate() never called its streamer, and returned {type(output).__name__} without "
            f"the ids of {rows} row(s): call it from stream_from_thread() instead"
        )
    prompts = _as_list(prompt_ids) or [[]] * rows
    if len(prompts) == rows and all(
        row[: len(prompt)] == prompt for row, prompt in zip(ids, prompts, strict=True)
    ):
        ids = [row[len(prompt) :] for row, prompt in zip(ids, prompts, strict=True)]
    if decoder_start_token_id is not None:
        ids = [row[1:] if row[:1] == [decoder_start_token_id] else row for row in ids]
    return [_up_to_its_end(row, eos_token_ids) for row in ids] if rows > 1 else list(ids)


def _up_to_its_end(row: list[int], eos_token_ids: Collection[int]) -> list[int]:
    end = next((i for i, each in enumerate(row) if each in eos_token_ids), len(row))
    return row[: end + 1]


def sequences_of(output: Any) -> Any:
    """The ids in the result of ``generate()``, in each form that models return them in.

    Something else, or None, where it has none.
    """
    while isinstance(output, tuple) and output:  # the text comes first, and its sound second
        output = output[0]
    if isinstance(output, Mapping):  # Whisper returns a plain dict
        return output.get("sequences")
    return getattr(output, "sequences", output)


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _is_ids(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(each, int) for each in value)
