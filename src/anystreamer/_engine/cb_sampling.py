"""How a manager chooses tokens: for each request as it asks, with log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingTopKLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)

from .._generation import GenerationRequest
from .cb_config import SAMPLING
from .cb_step_processor import StepProcessor

__all__ = ["Recorder", "choose_for_each", "draw_by_itself", "sampling_of"]

# transformers has no public name for the method that chooses the tokens of a step.
SAMPLE = "_sample"

# Below this temperature no token but the likeliest has a chance. Divided by a smaller one, the
# scores of many tokens can become infinite, and then all of them would be likely.
COLDEST = 1e-8


def sampling_of(request: GenerationRequest, vocabulary: int) -> dict[str, float | int]:
    """A request's sampling settings, in a manager's terms.

    Raises:
        TypeError, ValueError: ``generate()`` would refuse a value. The manager does not look: in
            its next step it would fail, and all other requests with it.
    """
    chosen = {name: request.setting(name) for name in SAMPLING}
    temperature, top_k, top_p = (
        SAMPLING[name] if chosen[name] is None else chosen[name] for name in list(SAMPLING)[1:]
    )
    if chosen["do_sample"]:
        temperature, top_p = float(temperature), float(top_p)
        # Under the conditions of generate(): a neutral value is not looked at there.
        if temperature != 1:
            TemperatureLogitsWarper(temperature)
        if top_k != 0:
            TopKLogitsWarper(top_k)
        if top_p < 1:
            TopPLogitsWarper(top_p)
    if not chosen["do_sample"] or temperature < COLDEST:  # always the likeliest token
        return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    return {
        "temperature": temperature,
        "top_k": min(top_k or vocabulary, vocabulary),
        "top_p": top_p,
    }


def choose_for_each(manager: Any) -> None:
    """Let a manager that has no batches yet choose tokens as each request asks."""
    kinds: dict[type, Any] = {
        ContinuousBatchingTopKLogitsWarper: _TopK,
        ContinuousBatchingTopPLogitsWarper: _TopP,
    }
    processors = manager.logit_processor.logits_processor
    for index, processor in enumerate(processors):
        if (kind := kinds.get(type(processor))) is not None:
            processors[index] = kind(processor)  # with the same settings


class _TopK(ContinuousBatchingTopKLogitsWarper):
    """Keeps the first of the likeliest tokens alone where only one is to be kept, as `argmax` does.

    transformers' own keeps all that are equally likely. In bfloat16 these are often two.
    """

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        is_greedy = tensor_arg[: scores.size(0)] == 1
        # Sorting all logits takes long. On an accelerator, to look first would mean to wait for it.
        if scores.device.type != "cpu" or not is_greedy.all():
            scores = super().__call__(scores, tensor_arg)
        first = torch.zeros_like(scores, dtype=torch.bool)
        first.scatter_(1, scores.argmax(dim=-1, keepdim=True), value=True)
        return scores.masked_fill(is_greedy[:, None] & ~first, self.filter_value)


class _TopP(ContinuousBatchingTopPLogitsWarper):
    """Sorts no logits, on a CPU, if all tokens are to be kept."""

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        shares = tensor_arg[: scores.size(0)].view(dtype=torch.float32)
        if scores.device.type == "cpu" and not (shares < 1).any():
            return scores
        return super().__call__(scores, tensor_arg)


def draw_by_itself(manager: Any, recorder: Recorder) -> None:
    """Let a manager that has batches, and has not started, use a random generator of its own.

    transformers' own draws from the generator of the process. A ``generate()`` beside it, whose
    seed was set, would then make other tokens.
    """
    draw = _Draw(recorder, _new_generator(manager))
    setattr(manager.batch_processor.model_runner, SAMPLE, draw)


def _new_generator(manager: Any) -> Any:
    seed = manager.continuous_batching_config.seed
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    return torch.Generator(manager.model.device).manual_seed(seed)


class Recorder(StepProcessor):
    """Keeps the log-probabilities of a step that are asked for, before anything changes them.

    transformers' own are those after temperature, top-k and top-p.

    Args:
        wants_logprobs: whether a request wants them, by its id. Called in the manager's thread.
        fail: called with the id of a request whose scores are not numbers, and with how many tokens
            there are before the one that they are for, the prompt's among them.
    """

    def __init__(
        self, wants_logprobs: Callable[[str], bool], fail: Callable[[str, int], None]
    ) -> None:
        self._wants_logprobs = wants_logprobs
        self._fail = fail
        self._states: list[Any] = []
        self._is_wanted = False
        self.latest: Any = None  # of shape (requests, vocabulary); None if no request needs them

    def prepare(self, states: list[Any]) -> None:
        self._is_wanted = any(self._wants_logprobs(each.request_id) for each in states)
        self._states = states

    def fail(self, row: int) -> None:
        """Fail the request of a row, whose scores are not numbers."""
        state = self._states[row]
        self._fail(state.request_id, len(state.initial_tokens) + len(state.generated_tokens))

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        self.latest = scores.log_softmax(dim=-1) if self._is_wanted else None
        return scores


class _Draw:
    """Chooses the tokens of a step. In place of the manager's own."""

    def __init__(self, recorder: Recorder, generator: Any) -> None:
        self._recorder = recorder
        self._generator = generator

    def __call__(self, scores: Any, output_ids: Any) -> None:
        """Write into *output_ids* the tokens, and below them their log-probabilities.

        *scores* has the shape ``(1, requests, vocabulary)``, *output_ids* has more columns than
        there are requests. Log-probabilities are float32, and stored with their bits as they are.
        """
        probabilities = scores[0].softmax(dim=-1)
        # One score that is NaN or infinite makes all probabilities of its row NaN. Drawing
        # from them would be an error for all requests.
        for row in probabilities[:, 0].isnan().nonzero()[:, 0].tolist():
            self._recorder.fail(row)
            probabilities[row] = 0
            probabilities[row, scores[0, row].argmax()] = 1
        chosen = torch.multinomial(probabilities, 1, generator=self._generator)
        output_ids[0, : len(chosen)].copy_(chosen[:, 0])
        if self._recorder.latest is not None:
            logprobs = self._recorder.latest.gather(1, chosen)[:, 0]
            output_ids[1, : len(chosen)].copy_(logprobs.view(dtype=torch.int32))
