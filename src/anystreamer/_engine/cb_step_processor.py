"""A processor of a manager's scores that gets the requests of each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

__all__ = ["StepProcessor"]


class StepProcessor(ContinuousBatchingLogitsProcessor, ABC):
    """Gets the requests of a step as Python objects, before its scores, and no tensor of settings.

    For managers whose steps run one after the other. All of it happens in the manager's thread.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012  as in the base class
    ignored_kwargs: tuple[str, ...] = ()

    def add_to(self, manager: Any) -> None:
        """Let a manager that has no batches yet call this one, before those that it has."""
        processors = manager.logit_processor
        processors.logits_processor.insert(0, self)
        processors.tensors_required += 1
        processors.do_processing = True

    @abstractmethod
    def prepare(self, states: list[Any]) -> None:
        """Take the manager's states of the requests that get a token, in the order of the rows."""

    # -- called by the manager

    def fill_defaults(self, int32_tensor: Any) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Any:
        self.prepare([each.state for each in requests_with_new_token])
        return torch.empty(0, dtype=torch.int32)
