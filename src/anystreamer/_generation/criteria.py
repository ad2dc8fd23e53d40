"""What ``generate()`` asks at each step: whether to stop, and of what scores. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .._streams import Logprob

__all__ = [
    "LogprobsProcessor",
    "RecordingCriteria",
    "StopFlagCriteria",
    "any_would_stop",
    "criteria_list",
    "processor_list",
    "wrap_criteria",
]


class StopFlagCriteria(StoppingCriteria):
    """Ends the rows that *rows_end* says, one bool for each, or for all. Asked after each step."""

    def __init__(self, rows_end: Callable[[torch.Tensor], Sequence[bool]]) -> None:
        self._rows_end = rows_end
        self._answers: dict[tuple[bool, ...], torch.Tensor] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return a bool tensor of shape ``(B,)`` for *input_ids* of shape ``(B, T)``."""
        # Nobody writes into an answer, so the same ones serve for every step.
        key = tuple(self._rows_end(input_ids))
        answer = self._answers.get(key)
        if answer is None:
            answer = torch.tensor(key, dtype=torch.bool, device=input_ids.device)
            self._answers[key] = answer = answer.expand(input_ids.shape[0])
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> StopFlagCriteria:
        # Assisted decoding copies criteria. There is one flag, and it leads back to a live stream.
        return self


class RecordingCriteria(StoppingCriteria):
    """A criterion of the caller's, and what it said when it was last asked."""

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion
        self._answer: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return what the caller's criterion says."""
        self._answer = self._criterion(input_ids, scores, **kwargs)
        return self._answer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # while it is being copied there is no criterion yet
            raise AttributeError(name)
        return getattr(self._criterion, name)

    def rows_stopped(self, rows: int) -> list[bool]:
        """For each row, whether it said to stop."""
        if self._answer is None:
            return [False] * rows
        return cast("list[bool]", torch.as_tensor(self._answer, device="cpu").expand(rows).tolist())


class LogprobsProcessor(LogitsProcessor):
    """Keeps the log-probabilities of the latest step, and changes nothing. *top* says how many
    tokens are told at each, apart from the one that was chosen.

    ``generate()`` asks processors of the caller's after the ones that its own penalties are made of
    and before temperature, top-k and their like.
    """

    def __init__(self, top: int) -> None:
        self._latest = torch.zeros(0)
        self._top = top

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return *scores*, of shape ``(B, vocabulary)``, as they are."""
        self._latest = scores.log_softmax(dim=-1)
        return scores

    def of(self, token_ids: Sequence[int]) -> list[Logprob]:
        """For each row, that of the token that was chosen, and those of the likeliest."""
        index = torch.tensor(token_ids, device=self._latest.device)[:, None]
        chosen = self._latest.gather(1, index)[:, 0].tolist()
        if not self._top:
            return [(each, ()) for each in chosen]
        likeliest = self._latest.topk(min(self._top, self._latest.shape[1]))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        tops = [tuple(zip(*pair, strict=True)) for pair in pairs]
        return list(zip(chosen, tops, strict=True))


def any_would_stop(criteria: Iterable[Any], output: Any) -> bool:
    """Whether any of transformers' own criteria says to stop after what ``generate()`` returned."""
    is_mapping = isinstance(output, Mapping)  # Whisper's may be nothing more than that
    sequences = output["sequences"] if is_mapping else getattr(output, "sequences", output)
    return any(
        bool(criterion(sequences, None).any())
        for criterion in criteria
        if not isinstance(criterion, RecordingCriteria)
    )


def criteria_list(*criteria: Any) -> StoppingCriteriaList:
    """The criteria in the list class that is the documented type of the argument."""
    return StoppingCriteriaList(criteria)


def processor_list(*processors: Any) -> LogitsProcessorList:
    """The processors in the list class that is the documented type of the argument."""
    return LogitsProcessorList(processors)


def wrap_criteria(criteria: Iterable[Any]) -> list[Any]:
    """The caller's criteria, each in a `RecordingCriteria` but for transformers' own.

    ``generate()`` recognises those by their type.
    """
    return [
        criterion
        if type(criterion).__module__ == "transformers.generation.stopping_criteria"
        else RecordingCriteria(criterion)
        for criterion in criteria
    ]
