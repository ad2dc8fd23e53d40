"""Continuous batching with `response_format`: a processor of the manager's, for all requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._generation import mask_scores
from .._text import FormMatcher

__all__ = ["add_form_masks"]


def add_form_masks(manager: Any, matcher_of: Callable[[str], FormMatcher | None]) -> None:
    """Let a manager that has not started choose only tokens that each request's form allows.

    Args:
        manager: of transformers.
        matcher_of: finds the matcher of a request by its id. It is used in the manager's thread.
    """
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessor,
    )

    class FormMasks(ContinuousBatchingLogitsProcessor):
        supported_kwargs: dict[str, type] = {}  # noqa: RUF012  as in the base class
        ignored_kwargs: tuple[str, ...] = ()

        def __init__(self) -> None:
            self._matchers: Sequence[FormMatcher | None] = ()

        def fill_defaults(self, int32_tensor: Any) -> None:
            int32_tensor.zero_()

        def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Any:
            import torch

            self._matchers = [self._advanced(each.state) for each in requests_with_new_token]
            return torch.empty(0, dtype=torch.int32)

        def _advanced(self, state: Any) -> FormMatcher | None:
            matcher = matcher_of(state.request_id)
            if matcher is not None:
                matcher.advance(state.generated_tokens[matcher.length :])
            return matcher

        def __call__(self, scores: Any, tensor_arg: Any) -> Any:
            rows = [each.allowed_bits() if each else None for each in self._matchers]
            return mask_scores(scores, rows)

    # First: temperature, top-k and top-p then choose among what is allowed.
    processors = manager.logit_processor
    processors.logits_processor.insert(0, FormMasks())
    processors.tensors_required += 1
    processors.do_processing = True
