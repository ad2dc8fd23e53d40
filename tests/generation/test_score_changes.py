"""A bias of ids and OpenAI's penalties, against scores that plain ``generate()`` gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from anystreamer import TokenIds, stream_batch, stream_text
from anystreamer.testing import ScriptedModel

from ..helpers.tiny_models import (
    VOCABULARY,
    assistant,
    generated,
    llama,
    t5,
    tokenizer,
)

pytestmark = pytest.mark.torch

PROMPT = "aaaa bbbb"
STEPS = 24

Change = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def by_hand(change: Change, model: Any = None, prompt: str = PROMPT) -> list[int]:
    """The likeliest ids, one step at a time: from the logits of plain ``generate()``, changed."""
    model = model or llama()
    ids = tokenizer()(prompt, return_tensors="pt")["input_ids"][0].tolist()
    answer: list[int] = []
    for _ in range(STEPS):
        output = model.generate(
            input_ids=torch.tensor([[*ids, *answer]]),
            attention_mask=torch.ones(1, len(ids) + len(answer), dtype=torch.long),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        answer.append(int(change(output.logits[0][0], answer).argmax()))
    return answer


def penalised(frequency: float = 0.0, presence: float = 0.0) -> Change:
    def change(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        changed = logits.clone()
        for token_id in set(answer):
            changed[token_id] -= frequency * answer.count(token_id) + presence
        return changed

    return change


def biased(bias: dict[int, float]) -> Change:
    def change(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        changed = logits.clone()
        for token_id, number in bias.items():
            changed[token_id] += number
        return changed

    return change


async def ids_with(**settings: Any) -> list[int]:
    settings = {"max_new_tokens": STEPS, "do_sample": False, **settings}
    async with stream_text(llama(), tokenizer(), PROMPT, **settings) as stream:
        await stream.read()
    return stream.token_ids


LIKELY = 7  # an id to favour or to ban


@pytest.mark.parametrize(
    "settings",
    [
        {"frequency_penalty": 0.5},
        {"frequency_penalty": 0.01},
        {"frequency_penalty": -2.0},
        {"presence_penalty": 0.4},
        {"presence_penalty": 2},
        {"frequency_penalty": 0.05, "presence_penalty": 0.1},
        {"logit_bias": {LIKELY: 100}},
        {"logit_bias": {LIKELY: 0.02, 5: -100}},
    ],
    ids=str,
)
async def test_the_answer_is_that_of_scores_changed_by_hand(settings: dict[str, Any]) -> None:
    def change(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        logits = biased(settings.get("logit_bias", {}))(logits, answer)
        penalties = [settings.get(f"{each}_penalty", 0.0) for each in ("frequency", "presence")]
        return penalised(*penalties)(logits, answer)

    assert await ids_with(**settings) == by_hand(change)


async def test_a_bias_and_penalties_together() -> None:
    bias = {LIKELY: 0.3, 9: 0.28, 11: 0.26}

    def change(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        return penalised(0.02, 0.05)(biased(bias)(logits, answer), answer)

    ids = await ids_with(logit_bias=bias, frequency_penalty=0.02, presence_penalty=0.05)
    assert ids == by_hand(change)
    assert len(set(ids)) > 3  # the penalties had something to do


async def test_the_prompt_s_tokens_do_not_count() -> None:
    """A ban of what has been: the prompt's ids can still come, and each of them once."""
    plain = generated(llama(), PROMPT, max_new_tokens=STEPS, do_sample=False)
    first = plain[0]
    prompt = TokenIds([*tokenizer()(PROMPT)["input_ids"][:-1], first])
    settings: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}
    async with stream_text(
        llama(), tokenizer(), prompt, logit_bias={first: 50.0}, presence_penalty=2.0, **settings
    ) as stream:
        await stream.read()
    assert stream.token_ids == [first, first]  # the bias is larger than the penalty
    async with stream_text(
        llama(), tokenizer(), prompt, logit_bias={first: 50.0}, frequency_penalty=60.0, **settings
    ) as stream:
        await stream.read()
    assert stream.token_ids[0] == first
    assert stream.token_ids[1] != first


async def test_the_tokens_of_each_row_count_for_it_alone() -> None:
    prompts = [PROMPT, "xy"]
    async with stream_batch(
        llama(), tokenizer(), prompts, max_new_tokens=STEPS, do_sample=False, frequency_penalty=0.5
    ) as stream:
        async for _ in stream:
            pass
    assert stream.token_ids == [by_hand(penalised(0.5), prompt=each) for each in prompts]


async def test_drafts_of_assisted_decoding_have_the_same_penalties() -> None:
    settings: dict[str, Any] = {"frequency_penalty": 0.5, "logit_bias": {LIKELY: 0.1}}

    def change(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        return penalised(0.5)(biased({LIKELY: 0.1})(logits, answer), answer)

    assert await ids_with(**settings, assistant_model=assistant()) == by_hand(change)
    assert await ids_with(**settings, prompt_lookup_num_tokens=3) == by_hand(change)


async def test_an_encoder_decoder_has_penalties_too() -> None:
    async with stream_text(
        t5(),
        tokenizer(),
        PROMPT,
        max_new_tokens=8,
        logit_bias={LIKELY: 80.0, 9: 60.0},
        frequency_penalty=50.0,
    ) as stream:
        await stream.read()
    assert stream.token_ids[:4] == [LIKELY, 9, LIKELY, 9]


async def test_log_probabilities_are_the_model_s_own() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "logprobs": True}
    found = []
    changes: list[dict[str, Any]] = [
        {},
        {"logit_bias": {LIKELY: 0.001}, "frequency_penalty": 0.001},
    ]
    for more in changes:
        async with stream_text(llama(), tokenizer(), PROMPT, **settings, **more) as stream:
            found.append(
                [each for chunk in [c async for c in stream] for each in chunk.logprobs or ()]
            )
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"frequency_penalty": "1"}, TypeError, "frequency_penalty must be a number"),
        ({"presence_penalty": True}, TypeError, "presence_penalty must be a number"),
        ({"presence_penalty": float("nan")}, ValueError, "presence_penalty must be finite"),
        ({"logit_bias": [1]}, TypeError, "logit_bias must map"),
        ({"logit_bias": {"7": 1}}, TypeError, "logit_bias must map"),
        ({"logit_bias": {7: "1"}}, TypeError, "logit_bias must map"),
        ({"logit_bias": {-1: 1.0}}, ValueError, "ids of at least 0"),
        ({"logit_bias": {7: float("inf")}}, ValueError, "finite"),
        ({"logit_bias": {VOCABULARY: 1.0}}, ValueError, f"the ids below {VOCABULARY}"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_at_once(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        stream_text(llama(), tokenizer(), PROMPT, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"frequency_penalty": 0.5}, {"presence_penalty": 0.5}, {"logit_bias": {7: 1.0}}],
    ids=str,
)
async def test_who_cannot_do_it_says_so(settings: dict[str, Any]) -> None:
    """A model that is not of transformers. Continuous batching does it: `test_cb_sampling.py`."""
    scripted = ScriptedModel(["a"])
    with pytest.raises(ValueError, match=next(iter(settings))):
        stream_text(scripted, scripted.tokenizer, PROMPT, **settings)
