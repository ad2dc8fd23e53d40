"""Refuses prompts that a model cannot take: too long for it, or of another vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._errors import PromptTooLong
from .._model import is_encoder_decoder

__all__ = ["check_context_length", "check_length", "check_vocabulary"]

# The ids of a text become Python's lists in calls that hold the interpreter's lock: a second for a
# million of them, in which the event loop stands still. To count tokens does not take the lock.
SLICE = 32 * 1024  # characters that are encoded at a time

# Encoded in slices, a text has other tokens where it was cut. So a prompt can be this much longer.
MARGIN = 1.25
SPARE = 1024


def check_length(tokenizer: Any, text: str, context_length: int) -> None:
    """Refuse a text that has more tokens than the context, and many more.

    Args:
        tokenizer: one with a Rust backend. For others nothing is done: they encode in Python, where
            other threads can run.
        text: of the whole prompt.
        context_length: how many tokens the model takes.

    Raises:
        PromptTooLong
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(text) <= context_length:
        return
    tokens = 0
    for start in range(0, len(text), SLICE):
        # Not encode(), which holds the lock.
        (encoding,) = backend.encode_batch([text[start : start + SLICE]], add_special_tokens=False)
        tokens += len(encoding)
        if tokens > MARGIN * context_length + SPARE:
            raise PromptTooLong(tokens, context_length, is_lower_bound=True)


def check_context_length(model: Any, rows: Sequence[Sequence[int]], context_length: int) -> None:
    """Refuse a prompt that leaves no token of the model's context for an answer.

    Raises:
        PromptTooLong
    """
    # The answer of an encoder-decoder has a context of its own.
    reserved = 0 if is_encoder_decoder(model) else 1
    for ids in rows:
        if len(ids) + reserved > context_length:
            raise PromptTooLong(len(ids), context_length)


def check_vocabulary(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Refuse ids that the model has no embedding for: they are of another model's tokenizer.

    Raises:
        ValueError
    """
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):  # it has none, or one for each of its parts
        return
    largest = max(map(max, filter(None, rows)), default=-1)
    if largest >= weight.shape[0]:
        raise ValueError(
            f"the prompt has the token id {largest}, and {type(model).__name__} has embeddings for "
            f"{weight.shape[0]} ids only: pass the tokenizer that belongs to the model"
        )
