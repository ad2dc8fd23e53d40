"""Continuous batching with `response_format`: a processor of the manager's, for all requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._generation import mask_scores
from .._text import FormMatcher
from .cb_step_processor import StepProcessor

__all__ = ["FormMasks"]


class FormMasks(StepProcessor):
    """Leaves only tokens that each request's form allows.

    Where it is before temperature, top-k and top-p, these choose among what is allowed.

    Args:
        matcher_of: finds the matcher of a request by its id. It is used in the manager's thread.
    """

    def __init__(self, matcher_of: Callable[[str], FormMatcher | None]) -> None:
        self._matcher_of = matcher_of
        self._matchers: Sequence[FormMatcher | None] = ()

    def prepare(self, states: list[Any]) -> None:
        self._matchers = [self._advanced(each) for each in states]

    def _advanced(self, state: Any) -> FormMatcher | None:
        matcher = self._matcher_of(state.request_id)
        # After a failure its length says how many tokens were of the form, until the request ends.
        if matcher is not None and matcher.failure is None:
            matcher.advance(state.generated_tokens[matcher.length :])
        return matcher

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        rows = [each.allowed_bits() if each else None for each in self._matchers]
        return mask_scores(scores, rows)
