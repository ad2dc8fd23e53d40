"""Whether a model answers a prompt in a batch as it answers the prompt alone. Needs torch.

The attention mask leaves padding out, but not every model reads it, and some count positions from
the padding on. Others mix their rows up. Their answers in a batch are wrong, and nothing fails. So
before a model's first batch without padding, and before its first one with padding, the beginnings
of its shortest and its longest prompt are answered, first together and then the shorter one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .._errors import GenerationStopped
from .._model import is_compiled
from .._weak_cache import WeakCache
from .compare_logits import logits_distance, logits_tolerance
from .criteria import StopFlagCriteria, criteria_list

__all__ = ["check_batch"]

# Tokens of the two prompts, and of their answers. The first token of an answer comes from the pass
# over the prompt, the second from reading the cache.
SHORT, LONG = 4, 12
NEW_TOKENS = 2

# Arguments that are for the batch itself, and not for how the model computes it.
_OF_THE_BATCH = frozenset(
    "logits_processor max_length max_new_tokens max_time min_length min_new_tokens "
    "num_return_sequences prefix_allowed_tokens_fn stop_strings stopping_criteria tokenizer "
    "input_ids attention_mask token_type_ids".split()
)

# For each model, of a batch without padding (False) and with padding (True).
_distances: WeakCache[dict[bool, float]] = WeakCache()


def check_batch(
    model: Any,
    prompts: Sequence[list[int]],
    generate_kwargs: Mapping[str, Any],
    *,
    pad: Callable[[list[dict[str, Any]]], dict[str, Any]],
    should_stop: Callable[[], bool],
) -> None:
    """Refuse a batch for a model that answers its prompts wrong.

    Each model is tested once without padding and once with padding. If the test itself fails, the
    batch is not refused.

    Args:
        model: of transformers.
        prompts: the ids of each.
        generate_kwargs: of the caller's.
        pad: puts encoded prompts together, as they are for the batch.
        should_stop: ends the trial.

    Raises:
        ValueError: what to do instead.
        GenerationStopped: *should_stop* returned True. It will be tried again.
    """
    is_padded = len(set(map(len, prompts))) > 1
    beginnings = _unlike_beginnings(prompts)
    if beginnings is None or is_compiled(model):  # for inputs of other shapes, it would compile
        return
    known = _distances.get(model, dict)
    if is_padded not in known:
        trial = _Trial(model, generate_kwargs, pad, should_stop)
        try:
            known[is_padded] = trial.distance(*beginnings)
        except GenerationStopped:
            raise
        except Exception:  # the batch itself then fails, with its own error
            return
    if not known[is_padded] <= logits_tolerance(model):  # it can be NaN
        instead = "Use prompts of the same number of tokens, or " if is_padded else "Use "
        raise ValueError(
            f"stream_batch() {'pads the shorter prompts' if is_padded else 'has several rows'}, "
            f"and {type(model).__name__} then answers them wrong: its logits differ by "
            f"{known[is_padded]:.2g} of their spread. {instead}stream_text() for each"
        )


def _unlike_beginnings(prompts: Sequence[list[int]]) -> tuple[list[int], list[int]] | None:
    """A few tokens of two prompts, of different length if the prompts are; None if all are equal.

    They need not make sense, but they must differ.
    """
    shortest, longest = min(prompts, key=len), max(prompts, key=len)
    if len(shortest) < len(longest):
        return shortest[:SHORT], longest[:LONG]
    for prompt in prompts:
        for position, pair in enumerate(zip(shortest, prompt, strict=True)):
            if len(set(pair)) > 1:
                part = slice(position, position + SHORT)
                return shortest[part], prompt[part]
    return None


class _Trial:
    """Two short calls of ``generate()``: of two prompts together, and of the first one alone."""

    def __init__(
        self,
        model: Any,
        generate_kwargs: Mapping[str, Any],
        pad: Callable[[list[dict[str, Any]]], dict[str, Any]],
        should_stop: Callable[[], bool],
    ) -> None:
        self._model = model
        self._pad = pad
        self._should_stop = should_stop
        self._kwargs = {
            **{name: each for name, each in generate_kwargs.items() if name not in _OF_THE_BATCH},
            "max_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "disable_compile": True,
            "output_logits": True,
            "return_dict_in_generate": True,
            "stopping_criteria": criteria_list(
                StopFlagCriteria(lambda ids, _: [should_stop()] * len(ids))
            ),
        }

    def distance(self, first: list[int], second: list[int]) -> float:
        """How far the answer to the first prompt beside the second is from its answer alone."""
        together = self._logits(first, second)
        alone = self._logits(first)
        # After a tie the second token is another one, and the logits after it are others.
        steps = NEW_TOKENS if together[0].argmax() == alone[0].argmax() else 1
        return logits_distance(together[:steps], alone[:steps])

    def _logits(self, *prompts: list[int]) -> list[torch.Tensor]:
        """The logits of the first of these prompts, for each token of its answer."""
        rows = [{"input_ids": torch.tensor([prompt])} for prompt in prompts]
        inputs = self._pad(rows)
        device = self._model.device
        output = self._model.generate(
            **{name: value.to(device) for name, value in inputs.items()}, **self._kwargs
        )
        if self._should_stop():  # perhaps before all of it was computed
            raise GenerationStopped
        return [step[0].float().cpu() for step in output.logits]
