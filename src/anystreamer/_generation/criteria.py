"""Criteria and processors that ``generate()`` calls at each step. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from .._streams import Logprob

__all__ = [
    "LogprobsProcessor",
    "RecordingCriteria",
    "StopFlagCriteria",
    "any_would_stop",
    "batch_criteria",
    "criteria_list",
    "ends_batch",
    "new_stop_string_criteria",
    "processor_list",
    "row_criteria",
    "wrap_criteria",
]


class StopFlagCriteria(StoppingCriteria):
    """Ends the rows for which *rows_end* returns True. Called after each step."""

    def __init__(
        self, rows_end: Callable[[torch.Tensor, Mapping[str, Any]], Sequence[bool]]
    ) -> None:
        self._rows_end = rows_end
        self._answers: dict[tuple[bool, ...], torch.Tensor] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return a bool tensor of shape ``(B,)`` for *input_ids* of shape ``(B, T)``."""
        # Answers are only read, so each one serves for all steps.
        key = tuple(self._rows_end(input_ids, kwargs))
        answer = self._answers.get(key)
        if answer is None:
            answer = torch.tensor(key, dtype=torch.bool, device=input_ids.device)
            self._answers[key] = answer = answer.expand(input_ids.shape[0])
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> StopFlagCriteria:
        # Assisted decoding copies criteria. A copy would have to copy a live stream.
        return self


class RecordingCriteria(StoppingCriteria):
    """A criterion of the caller's, with its latest answer about the text.

    When *is_over* returns True, the text has ended, and a model made of several goes on with
    something else, such as speech. The criterion is then not called, and stops nothing.
    """

    def __init__(self, criterion: Any, is_over: Callable[[], bool]) -> None:
        self._criterion = criterion
        self._is_over = is_over
        self._answer: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return the answer of the caller's criterion."""
        if self._is_over():
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        self._answer = self._criterion(input_ids, scores, **kwargs)
        return self._answer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # during a copy there is no criterion yet
            raise AttributeError(name)
        return getattr(self._criterion, name)

    def rows_stopped(self, rows: int) -> list[bool]:
        """For each row, whether the latest answer stopped it."""
        if self._answer is None:
            return [False] * rows
        return cast("list[bool]", torch.as_tensor(self._answer, device="cpu").expand(rows).tolist())


class LogprobsProcessor(LogitsProcessor):
    """Keeps the log-probabilities of the latest step, and changes nothing.

    *top* is the number of most likely tokens at each position, besides the chosen one. *take_late*
    is called first: it takes tokens of the step before that were not put yet.
    ``generate()`` calls the caller's processors after those for its own penalties, and before
    temperature, top-k and similar settings.
    """

    def __init__(self, top: int, take_late: Callable[[torch.Tensor], None]) -> None:
        self._latest = torch.zeros(0)
        self._top = top
        self._take_late = take_late

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return *scores*, of shape ``(B, vocabulary)``, unchanged."""
        self._take_late(input_ids)
        self._latest = scores.log_softmax(dim=-1)
        return scores

    def of(self, token_ids: Sequence[int]) -> list[Logprob]:
        """For each row, the log-probability of the chosen token, and of the most likely ones."""
        index = torch.tensor(token_ids, device=self._latest.device)[:, None]
        chosen = self._latest.gather(1, index)[:, 0].tolist()
        if not self._top:
            return [(each, ()) for each in chosen]
        likeliest = self._latest.topk(min(self._top, self._latest.shape[1]))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        tops = [tuple(zip(*pair, strict=True)) for pair in pairs]
        return list(zip(chosen, tops, strict=True))


def row_criteria(criteria: Iterable[Any]) -> list[tuple[Any, str]]:
    """Those of transformers' own that end single rows.

    Each has the setting of ``generate()`` whose criterion it takes the place of.
    """
    settings: dict[type, str] = {
        EosTokenCriteria: "eos_token_id",
        StopStringCriteria: "stop_strings",
    }
    return [(each, settings[type(each)]) for each in criteria if type(each) in settings]


def batch_criteria(criteria: Iterable[Any]) -> list[tuple[Any, str]]:
    """Those of transformers' own that end all rows, with their settings as above."""
    settings: dict[type, str] = {MaxLengthCriteria: "max_length", MaxTimeCriteria: "max_time"}
    return [(each, settings[type(each)]) for each in criteria if type(each) in settings]


def ends_batch(criterion: Any, length: int) -> bool:
    """Whether such a criterion ends all rows at this length. It waits for no device."""
    sequences = torch.zeros(1, 1, dtype=torch.long).expand(1, length)
    return bool(criterion(sequences, None).all())


def new_stop_string_criteria(tokenizer: Any, strings: str | Sequence[str]) -> StoppingCriteria:
    """The criterion that ``generate()`` makes of its stop strings."""
    return StopStringCriteria(tokenizer, strings if isinstance(strings, str) else list(strings))


def any_would_stop(criteria: Iterable[Any], sequences: torch.Tensor, scores: Any) -> bool:
    """Whether one of transformers' own criteria stops after these ids, of shape ``(B, T)``."""
    return any(
        bool(torch.as_tensor(criterion(sequences, scores)).any())
        for criterion in criteria
        if not isinstance(criterion, RecordingCriteria)
    )


def criteria_list(*criteria: Any) -> StoppingCriteriaList:
    """The criteria in the list class that is the documented type of the argument."""
    return StoppingCriteriaList(criteria)


def processor_list(*processors: Any) -> LogitsProcessorList:
    """The processors in the list class that is the documented type of the argument."""
    return LogitsProcessorList(processors)


def wrap_criteria(criteria: Iterable[Any], is_over: Callable[[], bool]) -> list[Any]:
    """The caller's criteria, each in a `RecordingCriteria`, except for transformers' own.

    ``generate()`` recognises those by their type; but a list inside the list is any criterion.
    """
    return [
        criterion
        if type(criterion).__module__ == "transformers.generation.stopping_criteria"
        and not isinstance(criterion, StoppingCriteriaList)
        else RecordingCriteria(criterion, is_over)
        for criterion in criteria
    ]
