"""A model whose own `generate()` passes its work on to a model inside, with other arguments."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from anyio import CapacityLimiter, create_task_group

from anystreamer import FinishReason, stream_batch, stream_text

from ..zoo.build import TinyModel, build
from ..zoo.tokenizer import tokenizer

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),  # of configs made small
]

TOKENS = 8


@cache
def blip() -> TinyModel:
    """It ends a text by a token that it names when it calls the model inside."""
    return build("BlipForConditionalGeneration")


def answer(number: int) -> list[int]:
    """What it makes of an image, where no token ends it."""
    with_start = blip().model.generate(**blip().inputs(number), max_new_tokens=TOKENS)
    return list(with_start[0, 1:].tolist())


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> int:
    """A token that ends the first image's text early, and the second one's late or not at all."""
    first, second = answer(0), answer(1)
    token_id = next(each for each in first[1:-2] if each not in second[: first.index(each) + 1])
    monkeypatch.setattr(blip().model.config.text_config, "sep_token_id", token_id)
    return token_id


def images() -> dict[str, Any]:
    rows = [blip().inputs(number) for number in range(2)]
    return {"pixel_values": torch.cat([row["pixel_values"] for row in rows])}


def until(end: int, ids: list[int]) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


async def test_a_row_ends_with_the_token_that_the_inner_call_names(end: int) -> None:
    """What fills it up to the length of the others is not its own."""
    expected = [until(end, answer(0)), until(end, answer(1))]
    assert len(expected[0]) < len(expected[1])
    kwargs: dict[str, Any] = {"max_new_tokens": TOKENS}
    async with stream_batch(blip().model, tokenizer(), images(), **kwargs) as stream:
        texts = await stream.read()
    assert stream.token_ids == expected
    assert [usage.computed_tokens for usage in stream.usage if usage] == list(map(len, expected))
    assert stream.finish_reason == [
        FinishReason.EOS if end in ids else FinishReason.LENGTH for ids in expected
    ]
    assert texts == [
        tokenizer().decode([each for each in ids if each != end], skip_special_tokens=True)
        for ids in expected
    ]


async def test_an_end_that_the_inner_call_does_not_know_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = answer(0)
    monkeypatch.setattr(blip().model.generation_config, "eos_token_id", ids[2])
    kwargs: dict[str, Any] = {"max_new_tokens": TOKENS}
    async with stream_text(blip().model, tokenizer(), blip().inputs(0), **kwargs) as stream:
        await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (ids, FinishReason.LENGTH)
    assert stream.text == tokenizer().decode(ids, skip_special_tokens=True)


async def test_a_model_inside_that_was_given_a_generate_of_its_own_keeps_it(
    end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = blip().model.text_decoder
    usual, given = inner.generate, []

    def generate(**kwargs: Any) -> Any:
        given.append(kwargs)
        return usual(**kwargs)

    monkeypatch.setattr(inner, "generate", generate)
    kwargs: dict[str, Any] = {"max_new_tokens": TOKENS}
    async with stream_text(blip().model, tokenizer(), blip().inputs(0), **kwargs) as stream:
        await stream.read()
    assert len(given) == 1
    assert vars(inner)["generate"] is generate
    assert stream.finish_reason is FinishReason.EOS


async def test_the_models_inside_are_as_they_were() -> None:
    """After runs that overlap, too."""
    model = blip().model
    kwargs: dict[str, Any] = {"max_new_tokens": 4, "limiter": CapacityLimiter(2)}

    async def run() -> None:
        async with stream_text(model, tokenizer(), blip().inputs(0), **kwargs) as stream:
            assert await stream.read()

    async with create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(run)
    assert not any("generate" in vars(each) for each in model.modules())
    copy.deepcopy(model)
