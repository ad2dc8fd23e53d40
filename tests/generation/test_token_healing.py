"""`token_healing=`: generate() changes the end of the prompt, and the text goes on from that."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from anystreamer import FinishReason, stream_batch, stream_text

from ..helpers.llama_streams import ENDLESS, finished
from ..helpers.tiny_models import (
    Say,
    steps_of,
)
from ..helpers.word_models import new_word_llama, new_word_tokenizer

pytestmark = pytest.mark.torch


@cache
def words() -> Any:
    return new_word_tokenizer("https", "://", " hyper")


@cache
def healing() -> Any:
    """A model that would rather have said "https" than "http", after anything."""
    model = new_word_llama(words())
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(words())))
    model.lm_head.bias.data[words().convert_tokens_to_ids("https")] = 3.0
    return model


def stream_healed(prompt: str, **kwargs: Any) -> Any:
    kwargs = {"max_new_tokens": 6, "token_healing": True} | kwargs
    return stream_text(healing(), words(), prompt, **kwargs)


@pytest.mark.parametrize(
    ("prompt", "healed"),
    [
        ("see http", "see https"),
        ("see htt", "see https"),
        (" see http  ", "see https"),
        ("see http:", "see http:"),
        ("hello", "hello"),
    ],
    ids=["token", "part of a token", "spaces", "no such token", "nothing to heal"],
)
async def test_the_text_continues_the_healed_prompt(prompt: str, healed: str) -> None:
    """The new ids are those after it, and with it they are what `generate()` returns."""
    inputs = words()(prompt, return_tensors="pt")
    kwargs: dict[str, Any] = {"max_new_tokens": 6, "token_healing": True}
    expected = healing().generate(**inputs, **kwargs, tokenizer=words())
    assert words().decode(expected[0]).startswith(healed)
    stream = await finished(stream_healed(prompt))
    assert stream.output.tolist() == expected.tolist()
    assert stream.prompt_token_ids == words().encode(healed)
    assert stream.prompt_token_ids + stream.token_ids == stream.output[0].tolist()
    assert stream.text == words().decode(stream.token_ids)
    assert healed + stream.text == words().decode(expected[0])
    assert stream.usage.prompt_tokens == len(words().encode(healed))
    assert stream.usage.completion_tokens == 6
    assert stream.finish_reason is FinishReason.LENGTH


async def test_the_healed_prompt_is_known_with_the_first_piece() -> None:
    async with stream_healed("see http", max_new_tokens=200) as stream:
        piece = await stream.receive()
        assert words().decode(stream.prompt_token_ids) == "see https"
        assert piece


async def test_a_prompt_that_is_not_to_be_healed_stays() -> None:
    stream = await finished(stream_healed("see http  ", token_healing=False))
    assert stream.prompt_token_ids == words().encode("see http  ")


async def test_a_stop_string_and_a_stop_after_a_healed_prompt() -> None:
    kwargs: dict[str, Any] = {"stop": "://", **ENDLESS}
    say = Say("://x")
    stream = await finished(stream_healed("see http", **kwargs, logits_processor=[say]))
    assert (stream.text, stream.stop_string) == ("", "://")
    assert stream.token_ids == say.ids[:3]
    with steps_of(healing(), {4: lambda: stream.stop()}) as steps:  # the first one heals
        async with stream_healed("see http", **ENDLESS) as stream:
            await stream.read()
    assert steps.count == 4
    assert stream.prompt_token_ids + stream.token_ids == stream.output[0].tolist()
    assert len(stream.token_ids) == 3
    assert stream.finish_reason is FinishReason.STOPPED


async def test_healing_different_prompts_at_once_is_refused() -> None:
    """`generate()` pads them anew, on the tokenizer's side, and looks at the padding."""
    prompts = ["see http", "a longer one, http "]
    with steps_of(healing()) as steps:
        with pytest.raises(ValueError, match=r"token_healing=True.* stream_text\(\)"):
            async with stream_batch(healing(), words(), prompts, token_healing=True):
                pytest.fail("entered")
    assert steps.count == 0


async def test_healing_one_prompt_for_several_answers() -> None:
    kwargs: dict[str, Any] = {"token_healing": True, "max_new_tokens": 6}
    async with stream_batch(
        healing(), words(), ["see http "], num_return_sequences=2, do_sample=True, **kwargs
    ) as stream:
        await stream.read()
    assert stream.prompt_token_ids == [words().encode("see https")] * 2
    both = zip(stream.prompt_token_ids, stream.token_ids, strict=True)
    assert [prompt + answer for prompt, answer in both] == stream.output.tolist()
