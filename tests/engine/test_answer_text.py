"""The text of an engine's answers: the same, however it batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from anystreamer import FinishReason, open_engine
from anystreamer.demo import load_demo

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread_for_the_model")]

PROMPT = "An increasing sequence: one,"
both_ways = pytest.mark.parametrize("batching", ["none", "continuous"])


class DroppingFirstSpace:
    """The demo's tokenizer, with a decoder that drops a text's first space, as Llama 2's does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, ids: Sequence[int], **kwargs: Any) -> str:
        return str(self._tokenizer.decode(ids, **kwargs)).removeprefix(" ")


@cache
def demo() -> tuple[Any, Any]:
    model, tokenizer = load_demo()
    return model, DroppingFirstSpace(tokenizer)


@both_ways
async def test_a_string_prompt_is_continued_and_model_inputs_are_answered(batching: Any) -> None:
    model, tokenizer = demo()
    inputs = dict(tokenizer(PROMPT, return_tensors="pt"))
    async with open_engine(model, tokenizer, batching=batching) as engine:
        texts = []
        for prompt in (PROMPT, inputs):
            async with engine.stream_text(prompt, max_new_tokens=8) as stream:
                texts.append(await stream.read())
    assert texts == [" two, three, four, five,", "two, three, four, five,"]


@both_ways
async def test_an_ordinary_token_that_ends_the_row_is_not_text(batching: Any) -> None:
    model, tokenizer = demo()
    comma = tokenizer.convert_tokens_to_ids(",")
    async with open_engine(model, tokenizer, batching=batching) as engine:
        async with engine.stream_text(PROMPT, eos_token_id=comma, max_new_tokens=8) as stream:
            await stream.read()
        kwargs: dict[str, Any] = {"eos_token_id": comma, "max_new_tokens": 8, "stop": "o,"}
        async with engine.stream_text(PROMPT, **kwargs) as stopped:
            await stopped.read()
    assert (stream.text, stream.finish_reason) == (" two", FinishReason.EOS)
    assert stream.token_ids[-1] == comma
    assert (stopped.text, stopped.finish_reason) == (" tw", FinishReason.STOP_STRING)
