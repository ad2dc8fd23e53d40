"""`stream_batch` refuses prompts that a model answers wrong in a batch, or in a padded one."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from anyio import CancelScope, from_thread

from anystreamer import FinishReason, stream_batch

from ..helpers.tiny_models import generated, new_llama, steps_of
from ..helpers.tiny_models import tokenizer as byte_tokenizer
from ..zoo.build import build
from ..zoo.tokenizer import tokenizer

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),  # of configs made small
]

PROMPTS = ["one", "a longer prompt"]


def new_bart() -> Any:
    """A decoder that counts positions from the padding on."""
    return build("BartForCausalLM").model


@cache
def bart() -> Any:
    return new_bart()


async def batch(model: Any, encoder: Any, prompts: Any, **kwargs: Any) -> Any:
    kwargs = {"max_new_tokens": 5, "do_sample": False, **kwargs}
    async with stream_batch(model, encoder, prompts, **kwargs) as stream:
        await stream.read()
    return stream


async def test_a_model_that_answers_padded_prompts_wrong_is_refused() -> None:
    for _ in range(2):  # the result of the first trial is kept
        with pytest.raises(ValueError, match=r"pads the shorter prompts, and BartForCausalLM .*"):
            await batch(bart(), tokenizer(), PROMPTS)


async def test_it_is_served_prompts_of_one_length() -> None:
    prompts = ["one", "two"]
    stream = await batch(bart(), tokenizer(), prompts)
    rows = [tokenizer()(each, return_tensors="pt") for each in prompts]
    assert stream.token_ids == [
        generated(bart(), row, max_new_tokens=5, do_sample=False) for row in rows
    ]


async def test_model_inputs_go_to_generate_unchanged() -> None:
    inputs = dict(tokenizer()(PROMPTS, return_tensors="pt", padding=True, padding_side="left"))
    stream = await batch(bart(), tokenizer(), inputs)
    output = bart().generate(**inputs, max_new_tokens=5, do_sample=False)
    assert stream.token_ids == output[:, inputs["input_ids"].shape[1] :].tolist()


async def test_a_model_is_tried_once() -> None:
    model = new_llama(seed=9)
    with steps_of(model) as steps:
        for prompts in (["one", "two"], PROMPTS):
            before = steps.count
            await batch(model, byte_tokenizer(), prompts)
            tried = steps.count - before - 5
            assert 0 < tried <= 4
            await batch(model, byte_tokenizer(), prompts)
            assert steps.count == before + 10 + tried
        before = steps.count
        await batch(model, byte_tokenizer(), ["one", "one"])  # nothing to compare
        assert steps.count == before + 5


async def test_rounding_in_half_precision_refuses_no_model() -> None:
    model = new_llama(seed=9).to(torch.bfloat16)
    stream = await batch(model, byte_tokenizer(), PROMPTS)
    assert stream.finish_reason == [FinishReason.LENGTH] * 2


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_cancellation_during_the_trial_takes_one_step(step: int) -> None:
    """What was not tried to its end is tried again."""
    model = new_bart()
    with (
        steps_of(model, {step: lambda: from_thread.run_sync(scope.cancel)}) as steps,
        CancelScope() as scope,
    ):
        await batch(model, tokenizer(), PROMPTS)
    assert scope.cancelled_caught
    assert steps.count <= step + 1
    with pytest.raises(ValueError, match="pads the shorter prompts"):
        await batch(model, tokenizer(), PROMPTS)


async def test_a_model_that_mixes_rows_up_is_refused_every_batch() -> None:
    model = build("RwkvForCausalLM").model
    with pytest.raises(ValueError, match="has several rows, and RwkvForCausalLM then answers"):
        await batch(model, tokenizer(), ["one", "two"])


@pytest.mark.skipif(
    not hasattr(transformers, "ParakeetForTDT"), reason="this transformers cannot make a small one"
)
async def test_the_trial_pads_as_the_batch_is_padded() -> None:
    """CPM-Ant reads no mask: it leaves the id 0 out, whatever the tokenizer pads with."""
    model = build("CpmAntForCausalLM").model
    with pytest.raises(ValueError, match="pads the shorter prompts"):
        await batch(model, tokenizer(), PROMPTS)


@pytest.mark.skipif(
    not hasattr(transformers, "ParakeetForTDT"), reason="this transformers cannot make a small one"
)
async def test_a_model_that_walks_over_frames_is_refused_several_recordings() -> None:
    """It goes on with a row whose recording has ended, and nothing tells which of them has."""
    tiny = build("ParakeetForTDT")
    features = torch.cat([each for n in range(2) for each in tiny.inputs(n).values()])
    with pytest.raises(ValueError, match=r"2 rows: ParakeetForTDT .* one recording at a time"):
        await batch(tiny.model, tokenizer(), {"input_features": features})
