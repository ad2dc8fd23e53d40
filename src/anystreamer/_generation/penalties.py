"""Processors for settings that ``generate()`` lacks: OpenAI's penalties, and a bias of ids.

As vLLM defines them: the bias is added first, then the penalties are taken off, and then come the
temperature and the other settings of sampling. The repetition penalty, which is ``generate()``'s
own, comes before all of them. Needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import LogitsProcessor

__all__ = ["GeneratedTokensPenalty", "LogitBias"]


class LogitBias(LogitsProcessor):
    """Adds a number to the scores of some ids."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._bias = bias
        self._added: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the sum, of shape ``(B, vocabulary)`` as *scores*."""
        if self._added is None:
            ids = torch.tensor(list(self._bias), device=scores.device)
            values = torch.tensor(
                list(self._bias.values()), device=scores.device, dtype=scores.dtype
            )
            self._added = torch.zeros_like(scores[0]).index_add_(0, ids, values)
        return scores + self._added


class GeneratedTokensPenalty(LogitsProcessor):
    """Takes a penalty off the scores of ids that the answer has. The prompt's do not count.

    Args:
        frequency: taken off once for each time that the answer has the id.
        presence: taken off once if the answer has it.
    """

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency = frequency
        self._presence = presence
        self._prompt_length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the difference, of shape ``(B, vocabulary)`` as *scores*."""
        if self._prompt_length is None:  # the first call is for the answer's first token
            self._prompt_length = input_ids.shape[1]
        # Counted again each time: assisted decoding goes back to fewer ids.
        generated = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, generated, torch.ones_like(generated, dtype=scores.dtype)
        )
        return scores - self._frequency * counts - self._presence * (counts > 0)
