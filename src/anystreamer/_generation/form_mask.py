"""The processor that lets ``generate()`` choose only tokens that the answer's form allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from .._text import FormMatcher
from .score_mask import mask_scores

__all__ = ["FormMask"]


class FormMask(LogitsProcessor):
    """Masks the scores of tokens that the form of a row does not allow.

    The tokens are taken from the streamer, which has them on the CPU before the next forward pass
    begins. So a mask is made while a device is still busy with that pass: reading *input_ids* would
    wait for it. It reads only drafts, which the streamer does not see, and tokens not put yet.

    Args:
        matchers: of the rows.
        prompt_length: returns how many of the ids are the prompt's.
        argument: the argument that asks for the form, for messages.
        reads_drafts: whether the ids can be drafts, of assisted decoding.
        take_late: takes tokens of the step before that were not put yet.
    """

    def __init__(
        self,
        matchers: Sequence[FormMatcher],
        prompt_length: Callable[[], int],
        *,
        argument: str,
        reads_drafts: bool,
        take_late: Callable[[torch.Tensor], None],
    ) -> None:
        self._matchers = matchers
        self._prompt_length = prompt_length
        self._argument = argument
        self._made: list[list[int]] | None = [[] for _ in matchers] if reads_drafts else None
        self._take_late = take_late
        self._was_called = False

    def take(self, step: Sequence[Sequence[int]]) -> None:
        """Take the tokens that were chosen for each row.

        Raises:
            ValueError: the form does not allow one of them, or is too complex to be followed.
        """
        if not self._was_called:
            raise ValueError(
                f"{self._argument}: this model's generate() does not call logits processors"
            )
        if self._made is not None:
            for made, ids in zip(self._made, step, strict=True):
                made.extend(ids)
            return
        for matcher, ids in zip(self._matchers, step, strict=True):
            if not matcher.advance(ids):
                raise matcher.failure or ValueError(
                    f"{self._argument}: other settings or processors left no token that the "
                    "format allows"
                )

    def is_complete(self, row: int) -> bool:
        """Whether a row's answer is a whole text of the form, and nothing can follow."""
        if self._made is not None:
            self._matchers[row].seek(self._made[row])
        return self._matchers[row].is_complete

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return *scores*, of shape ``(B, vocabulary)``, with -inf where a token is not allowed."""
        self._was_called = True
        self._take_late(input_ids)
        if self._made is not None:
            for matcher, ids in zip(self._matchers, input_ids.tolist(), strict=True):
                matcher.seek(ids[self._prompt_length() :])
        rows = [matcher.allowed_bits() for matcher in self._matchers]
        for matcher in self._matchers:
            if matcher.failure is not None:
                raise matcher.failure
        masked: torch.Tensor = mask_scores(scores, rows)
        return masked

    def __deepcopy__(self, memo: dict[int, Any]) -> FormMask:
        # Assisted decoding copies processors for the drafts. They are of the same answer.
        return self
