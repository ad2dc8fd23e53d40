"""How far apart the logits of two computations of one answer are.

Logits are compared and not ids. A near tie between two ids is then no difference, and a wrong
answer is seen even where the likeliest id is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["logits_distance", "logits_tolerance"]

# Logits beyond this belong to tokens that the model excludes.
EXCLUDED = 1e4

# How far apart two rows of logits of one answer can be, in units of their spread. Over 270 small
# models, those that are served correctly reached 0.000007 in float32 and 0.02 in bfloat16, the
# others began at 0.17.
TOLERANCE = 0.1


def logits_distance(batched: Sequence[torch.Tensor], alone: Sequence[torch.Tensor]) -> float:
    """How far apart the rows of one answer are, on average.

    On average, because in half precision rounding can send a token to another expert.
    """
    distances = [_row_distance(*rows) for rows in zip(batched, alone, strict=True)]
    return sum(distances) / len(distances)


def _row_distance(batched: torch.Tensor, alone: torch.Tensor) -> float:
    counted = (alone.abs() < EXCLUDED) & (batched.abs() < EXCLUDED)
    batched, alone = batched[counted], alone[counted]
    difference = (batched - batched.mean()) - (alone - alone.mean())
    error = float(difference.square().mean().sqrt())
    return error / float(alone.std(correction=0)) if error else 0.0


def logits_tolerance(model: Any) -> float:
    """The largest distance of right answers: smaller if the model computes in full float32."""
    import torch

    if model.dtype.itemsize < 4 or torch.get_float32_matmul_precision() != "highest":
        return TOLERANCE
    return TOLERANCE / 100
