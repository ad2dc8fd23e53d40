"""`UpTo`: a token limit that gives way where the model's context has less room for an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from .._model import room_for_answer
from .._streams import Row

__all__ = ["UpTo"]


class UpTo(int):
    """For ``max_new_tokens=``: this many tokens, or as many as the context has left.

    How many are left is known once the prompt is encoded, and the request then uses that number.
    For an engine of another kind it is a plain number: `was_fitted` stays False.

    Args:
        limit: how many tokens at the most.
        context: how many tokens the model takes, prompt and answer together. None: not known.
    """

    context: int | None
    was_fitted: bool  #: whether a request has taken the context into account

    def __new__(cls, limit: int, context: int | None) -> Self:
        self = super().__new__(cls, limit)
        self.context = context
        self.was_fitted = False
        return self

    def fit(self, model: Any, rows: Iterable[Row], minimum: int) -> int:
        """The limit of answers to these prompts, and at least *minimum*.

        If even these do not fit, the request is refused later, by a check that can name the reason.
        """
        self.was_fitted = True
        if self.context is None:
            return int(self)
        rooms = [room_for_answer(model, len(row.prompt_token_ids), self.context) for row in rows]
        return max(minimum, min(int(self), *rooms))
