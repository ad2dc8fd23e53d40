"""Sampling that costs nothing while no request samples: the manager's processors, for a CPU."""

from __future__ import annotations

from typing import Any

__all__ = ["skip_sort_when_greedy"]


def skip_sort_when_greedy(manager: Any) -> None:
    """Sort no logits for a batch whose requests all take the likeliest token.

    The manager's processors sort all logits at each step, for each request. On an accelerator,
    looking at the batch's settings first would mean waiting for it; on a CPU it costs nothing.
    """
    try:
        from transformers.generation.continuous_batching.cb_logits_processors import (
            ContinuousBatchingTopKLogitsWarper,
            ContinuousBatchingTopPLogitsWarper,
        )

        processors: list[Any] = manager.logit_processor.logits_processor
    except (ImportError, AttributeError):  # another release of transformers: it works, slower
        return

    class TopK(ContinuousBatchingTopKLogitsWarper):
        def __call__(self, scores: Any, tensor_arg: Any) -> Any:
            if (tensor_arg[: scores.size(0)] != 1).any():
                return super().__call__(scores, tensor_arg)
            best = scores.max(dim=-1, keepdim=True).values
            return scores.masked_fill(scores < best, self.filter_value)

    class TopP(ContinuousBatchingTopPLogitsWarper):
        def __call__(self, scores: Any, tensor_arg: Any) -> Any:
            import torch

            if (tensor_arg[: scores.size(0)].view(dtype=torch.float32) < 1).any():
                return super().__call__(scores, tensor_arg)
            return scores  # all tokens

    kinds: dict[type, Any] = {
        ContinuousBatchingTopKLogitsWarper: TopK,
        ContinuousBatchingTopPLogitsWarper: TopP,
    }
    for index, processor in enumerate(processors):
        if (kind := kinds.get(type(processor))) is not None:
            processors[index] = kind(processor)  # with the same settings
