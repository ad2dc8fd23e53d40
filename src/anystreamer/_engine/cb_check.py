"""Whether a model's answers with continuous batching equal those of its own ``generate()``.

transformers' manager takes any model. Where it does not reach the model's attention, or the model
does not read the positions that it is given, the text is wrong and nothing fails. So when an engine
opens, two prompts are answered together by a manager, and each alone by ``generate()``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .._generation import logits_distance, logits_tolerance
from .._model import text_config
from .cb_manager import cause_of_death, is_dying

__all__ = ["AnswerCheck"]

# The positions of the two answers do not overlap: a row of logits is known by its position.
PROMPT_LENGTHS = 3, 8

# The first token comes from the pass over the prompt, the others from reading the cache.
NEW_TOKENS = 3

# How often to check whether the engine was closed meanwhile (seconds).
RESULT_POLL = 0.1


class AnswerCheck:
    """Compares a manager's answers to two unlike prompts with those of ``generate()``.

    Args:
        model: of transformers.
        special_ids: tokens that must not be in a prompt: they can stand for an image.
        is_cancelled: ends the check early, without a result.
    """

    def __init__(self, model: Any, special_ids: set[int], is_cancelled: Callable[[], bool]) -> None:
        self._model = model
        self._is_cancelled = is_cancelled
        prompts = _unlike_prompts(text_config(model).vocab_size, special_ids)
        self._prompts = {f"anystreamer-check-{i}": prompt for i, prompt in enumerate(prompts)}

    def run(self, manager: Any) -> None:
        """Start a manager, and compare its first answers.

        Raises:
            ValueError: they differ.
            BaseException: what the manager or ``generate()`` failed with.
        """
        # Before it starts: then its first batch has both.
        for request_id, prompt in self._prompts.items():
            manager.add_request(
                prompt, request_id=request_id, max_new_tokens=NEW_TOKENS, eos_token_id=-1
            )
        with _recorded(manager) as recorded:
            manager.start()
            token_ids = self._wait_for_results(manager)
        if len(token_ids) < len(self._prompts):
            for request_id in self._prompts:
                manager.cancel_request(request_id)
            return
        recorded.check_layers()
        distance = max(
            logits_distance(
                recorded.answer(prompt), self._answer_alone(prompt, token_ids[request_id])
            )
            for request_id, prompt in self._prompts.items()
        )
        if not distance <= logits_tolerance(self._model):  # it can be NaN
            raise ValueError(
                "its answers to two test prompts are not those of generate(): the logits differ by "
                f"{distance:.2g} of their spread"
            )

    def _wait_for_results(self, manager: Any) -> dict[str, list[int]]:
        """The tokens that the manager chose; fewer if the check was cancelled."""
        token_ids: dict[str, list[int]] = {}
        while len(token_ids) < len(self._prompts) and not self._is_cancelled():
            result = manager.get_result(timeout=RESULT_POLL)
            if result is None and not manager.is_running():
                raise cause_of_death(manager)
            if result is not None:
                if result.error is not None:
                    raise (
                        cause_of_death(manager) if is_dying(manager) else RuntimeError(result.error)
                    )
                token_ids[result.request_id] = list(result.generated_tokens)
        return token_ids

    @torch.no_grad()
    def _answer_alone(self, prompt: list[int], token_ids: list[int]) -> list[torch.Tensor]:
        """The logits that ``generate()`` has where it makes these tokens of a prompt."""
        input_ids = torch.tensor([prompt], device=self._model.device)
        output = self._model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            logits_processor=LogitsProcessorList([_Force(token_ids)]),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            # None of these tokens is to end it: an id beyond the vocabulary.
            eos_token_id=text_config(self._model).vocab_size,
            pad_token_id=0,
            disable_compile=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return [row[0].float().cpu() for row in output.logits]


class _Recorded:
    """What a manager's forward passes use and make."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._cache: Any = None
        self._layers: set[int] = set()  # those that used the cache
        self._logits: dict[int, torch.Tensor] = {}  # by position

    def before_pass(self, _: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Record which layers use the cache. Another user of the model can be in a pass as well."""
        batches = self._manager.batch_processor
        if self._cache is not None or batches is None or kwargs.get("cache") is not batches.cache:
            return
        self._cache = batches.cache
        update = self._cache.update

        @functools.wraps(update)
        def recording(
            key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
        ) -> Any:
            self._layers.add(layer_idx)
            return update(key_states, value_states, layer_idx, *args, **kwargs)

        self._cache.update = recording

    def after_pass(self, _: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Record the logits of the tokens that come next."""
        if self._cache is None or kwargs.get("cache") is not self._cache:
            return
        indices, positions = kwargs["logits_indices"], kwargs["position_ids"][0]
        rows = output.logits[0]
        if len(rows) == len(positions):  # the model computes them for every token
            rows = rows[indices]
        for position, row in zip(positions[indices].tolist(), rows, strict=True):
            self._logits[position] = row.float().cpu()

    def answer(self, prompt: list[int]) -> list[torch.Tensor]:
        """The logits of each token of the answer to a prompt."""
        return [self._logits[len(prompt) - 1 + number] for number in range(NEW_TOKENS)]

    def check_layers(self) -> None:
        """Raises ValueError if a layer did not use the manager's cache."""
        count = text_config(self._manager.model).num_hidden_layers
        if missing := set(range(count)) - self._layers:
            raise ValueError(f"{len(missing)} of its {count} layers do not use the manager's cache")

    def stop(self) -> None:
        """Record nothing more."""
        if self._cache is not None:
            del self._cache.update  # the recording one


@contextmanager
def _recorded(manager: Any) -> Iterator[_Recorded]:
    """Record the forward passes of a manager within the block."""
    recorded = _Recorded(manager)
    handles = [
        manager.model.register_forward_pre_hook(recorded.before_pass, with_kwargs=True),
        manager.model.register_forward_hook(recorded.after_pass, with_kwargs=True),
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
        recorded.stop()


class _Force(LogitsProcessor):
    """Makes ``generate()`` choose the tokens that the manager chose."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = iter(token_ids)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self._token_ids)] = 0.0
        return forced


def _unlike_prompts(vocabulary: int, special_ids: set[int]) -> list[list[int]]:
    """Two prompts without a common id, spread over the middle of the vocabulary."""
    usable = [
        token_id
        for token_id in range(vocabulary // 5, vocabulary * 4 // 5)
        if token_id not in special_ids
    ]
    total, first = sum(PROMPT_LENGTHS), PROMPT_LENGTHS[0]
    spread = [usable[(2 * i + 1) * len(usable) // (2 * total)] for i in range(total)]
    return [spread[:first], spread[: first - 1 : -1]]
