"""Continuous batching with processors of ``generate()``: those that each request asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .cb_step_processor import StepProcessor

__all__ = ["ForEachRequest", "RequestProcessors", "processors_or_none"]

#: Finds the processors of a request by its id; None if it has none. For the manager's thread.
Find = Callable[[str], "RequestProcessors | None"]


class RequestProcessors:
    """Processors of ``generate()`` for one request, and the ids that they are called with.

    Args:
        processors: each is called with ids of shape ``(1, T)``, of the prompt and of the answer so
            far, and with scores of shape ``(1, vocabulary)``.
    """

    def __init__(self, processors: list[Any]) -> None:
        self._processors = processors
        self._ids: Any = None

    def take(self, state: Any) -> None:
        """Take the new tokens of the manager's state of the request."""
        known = 0 if self._ids is None else self._ids.shape[1]
        # A preempted request starts again, with its answer so far in its prompt.
        in_prompt = len(state.initial_tokens)
        new = state.initial_tokens[known:] + state.generated_tokens[max(0, known - in_prompt) :]
        ids = torch.tensor([new], dtype=torch.long)
        if self._ids is not None:
            ids = torch.cat([self._ids, ids.to(self._ids.device)], dim=1)
        self._ids = ids

    def process(self, scores: Any) -> Any:
        """Return the changed scores of the next token, of shape ``(1, vocabulary)``."""
        self._ids = self._ids.to(scores.device)
        for processor in self._processors:
            scores = processor(self._ids, scores)
        return scores


def processors_or_none(processors: list[Any]) -> RequestProcessors | None:
    return RequestProcessors(processors) if processors else None


class ForEachRequest(StepProcessor):
    """Calls the processors of each request for its row."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._rows: list[tuple[int, RequestProcessors]] = []

    def prepare(self, states: list[Any]) -> None:
        self._rows = []
        for row, state in enumerate(states):
            if (processors := self._find(state.request_id)) is not None:
                processors.take(state)
                self._rows.append((row, processors))

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        if self._rows:
            scores = scores.clone()
        for row, processors in self._rows:
            scores[row : row + 1] = processors.process(scores[row : row + 1])
        return scores
