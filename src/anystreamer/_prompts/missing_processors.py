"""Tokenizers that stand in for a processor that could not be loaded, and what is missing."""

from __future__ import annotations

import weakref

from .._errors import is_kind, message_of

__all__ = ["missing_processor", "note_missing_processor"]

_reasons: dict[int, str] = {}  # by the id of the tokenizer, for as long as it lives


def note_missing_processor(tokenizer: object, error: Exception) -> None:
    """Note that a model accepts only text, with this tokenizer, because of this error."""
    # The message of an ImportError of transformers names the package and says how to install it.
    # Other errors can have paths, and go to the log only: clients see what is noted here.
    reason = message_of(error) if is_kind(error, ImportError) else "the log says why"
    _reasons[id(tokenizer)] = " ".join(reason.split())
    weakref.finalize(tokenizer, _reasons.pop, id(tokenizer), None)


def missing_processor(tokenizer: object) -> str | None:
    """Why this tokenizer stands in for a processor; None if it does not."""
    return _reasons.get(id(tokenizer))
