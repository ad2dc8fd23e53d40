"""The ways in which a model ends by itself, and settings that could be mistaken for the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, MaxLengthCriteria, MaxTimeCriteria, StoppingCriteria

from anystreamer import FinishReason

from .llama_streams import ENDLESS, PROMPT
from .tiny_models import EOS, Say

# Arguments that could be mistaken for the reason of an end, and never are.
SUSPECTS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "criterion": lambda: {"stopping_criteria": [lambda input_ids, scores: False]},
    "transformers' criterion": lambda: {"stopping_criteria": [MaxTimeCriteria(max_time=900.0)]},
    "max_time": lambda: {"max_time": 900.0},
    "stop": lambda: {"stop": "never said"},
    "stop_strings": lambda: {
        "generation_config": GenerationConfig(stop_strings=["never said"]),
    },
}


class AfterTokens(StoppingCriteria):
    """A caller's criterion, with something of its own that is copied with it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = 0
        self.also = [count]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.asked += 1
        done = input_ids.shape[1] - len(PROMPT) >= self.count
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool)


def after_tokens(count: int) -> Callable[..., bool]:
    return lambda input_ids, scores, **kwargs: input_ids.shape[1] - len(PROMPT) >= count


# Ways in which the model ends by itself in its third step, each with its finish reason.
OWN_ENDS: dict[str, tuple[FinishReason, Callable[[], dict[str, Any]]]] = {
    "eos": (FinishReason.EOS, lambda: {"logits_processor": [Say("ab", EOS)], **ENDLESS}),
    "length": (FinishReason.LENGTH, lambda: {"max_new_tokens": 3}),
    "criteria": (
        FinishReason.CRITERIA,
        lambda: {"stopping_criteria": [after_tokens(3)], **ENDLESS},
    ),
    "transformers' criteria": (
        FinishReason.CRITERIA,
        lambda: {"stopping_criteria": [MaxLengthCriteria(len(PROMPT) + 3)], **ENDLESS},
    ),
    "stop string": (
        FinishReason.STOP_STRING,
        lambda: {"logits_processor": [Say("abcd")], "stop": "bc", **ENDLESS},
    ),
    "transformers' stop string": (
        FinishReason.STOP_STRING,
        lambda: {
            "logits_processor": [Say("abcd")],
            "generation_config": GenerationConfig(stop_strings=["bc"], max_new_tokens=50),
        },
    ),
}
