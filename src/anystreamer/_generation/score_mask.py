"""Masks the scores of tokens that a form does not allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["mask_scores"]


def mask_scores(scores: Any, rows: Sequence[bytes | None]) -> Any:
    """Return *scores* with -inf where a token is not allowed.

    A row whose allowed tokens are all -inf already is left as it is: another processor forces a
    token, such as the last one before a limit.

    Args:
        scores: a float tensor of shape ``(B, vocabulary)``, on any device.
        rows: for each of the first rows, a bit for each token, lowest first, as
            `FormMatcher.allowed_bits` gives them. None allows all tokens.
    """
    import numpy as np
    import torch

    if all(bits is None for bits in rows):
        return scores
    count, vocabulary = scores.shape
    allowed = np.ones((count, vocabulary), np.bool_)
    for number, bits in enumerate(rows):
        if bits is not None:  # the model's vocabulary can be larger than the tokenizer's
            allowed[number] = np.unpackbits(
                np.frombuffer(bits, np.uint8), count=vocabulary, bitorder="little"
            )
    masked = scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))
    is_forced = masked.isneginf().all(dim=-1, keepdim=True)
    return torch.where(is_forced, scores, masked)
