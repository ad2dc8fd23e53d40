"""Refuses prompts that are much too long for a model, before all of them is encoded."""

from __future__ import annotations

from typing import Any

from .._errors import PromptTooLong

__all__ = ["check_length"]

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
