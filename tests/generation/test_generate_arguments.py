"""Arguments of generate() that are the caller's own: processors, criteria, configs, caches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import ENDLESS, PROMPT, Action, collect, stream_llama
from ..helpers.own_ends import AfterTokens
from ..helpers.tiny_models import Adapter, Say, generated, ids_of, llama, steps_of, tokenizer

pytestmark = pytest.mark.torch


async def test_a_logits_processor_of_the_callers() -> None:
    class Never(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            scores[:, first] = -torch.inf
            return scores

    first = generated(llama(), PROMPT, max_new_tokens=1)[0]
    _, stream = await collect(stream_llama(max_new_tokens=10, logits_processor=[Never()]))
    assert first not in stream.token_ids
    assert stream.token_ids == generated(
        llama(), PROMPT, max_new_tokens=10, logits_processor=[Never()]
    )


async def test_a_generation_config_of_the_callers_is_used_and_left_as_it_was() -> None:
    config = GenerationConfig(max_new_tokens=6, repetition_penalty=1.8)
    before = config.to_dict()
    expected = generated(llama(), PROMPT, generation_config=copy.deepcopy(config))
    _, stream = await collect(stream_llama(generation_config=config))
    assert stream.token_ids == expected
    assert config.to_dict() == before


@pytest.mark.parametrize("how", ["stop", "stop string", "length", "leave"])
async def test_a_cache_of_the_callers_is_consistent_after_a_stop(how: str) -> None:
    """A second turn on it makes the same tokens as an uncached run."""
    cache = DynamicCache(config=llama().config)
    kwargs: dict[str, Any] = {"logits_processor": [Say("one two")], **ENDLESS}
    at: dict[int, Action] = {}
    if how == "stop":
        at = {5: lambda: stream.stop()}
    elif how == "stop string":
        kwargs["stop"] = "tw"
    elif how == "length":
        kwargs["max_new_tokens"] = 5
    with steps_of(llama(), at):
        async with stream_llama(past_key_values=cache, **kwargs) as stream:
            if how == "leave":
                await stream.receive()
            else:
                await stream.read()
    so_far = stream.output
    assert cache.get_seq_length() == so_far.shape[1] - 1
    prompt = {"input_ids": torch.cat([so_far, torch.tensor([ids_of(" And?")])], dim=1)}
    expected = generated(llama(), prompt, max_new_tokens=8)
    _, second = await collect(stream_llama(prompt, past_key_values=cache, max_new_tokens=8))
    assert second.token_ids == expected


async def test_a_criterion_is_called_once_for_each_token() -> None:
    criterion = AfterTokens(4)
    await collect(stream_llama(stopping_criteria=[criterion], **ENDLESS))
    assert criterion.asked == 4


async def test_the_callers_list_of_criteria_is_left_as_it_was() -> None:
    criteria = StoppingCriteriaList([AfterTokens(2)])
    before = list(criteria)
    await collect(stream_llama(stopping_criteria=criteria, **ENDLESS))
    assert list(criteria) == before


async def test_the_criteria_can_be_copied() -> None:
    """Assisted decoding of some releases does so. The copies still lead to this stream."""

    class Copying(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    seen: list[Any] = []
    generate = llama().generate

    def copying(**kwargs: Any) -> Any:
        seen.extend(kwargs["stopping_criteria"])
        kwargs["stopping_criteria"] = copy.deepcopy(
            StoppingCriteriaList(kwargs["stopping_criteria"])
        )
        return generate(**kwargs)

    own = AfterTokens(500)
    model = Adapter(llama())
    model.generate = copying  # type: ignore[method-assign]
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        context = stream_text(
            model, tokenizer(), PROMPT, stopping_criteria=[own, Copying()], stop="zz", **ENDLESS
        )
        async with context as stream:
            await stream.read()
    assert steps.count == 3
    assert len(seen) == 3
    duplicate = copy.deepcopy(seen[0])
    assert duplicate is not seen[0]
    assert duplicate.also == own.also


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"cache_implementation": "static"},
        lambda: {"use_cache": False},
        lambda: {"prefill_chunk_size": 4, "past_key_values": DynamicCache()},
    ],
    ids=["static cache", "no cache", "prefill in chunks"],
)
async def test_other_ways_to_run_the_model(make: Callable[[], dict[str, Any]]) -> None:
    expected = generated(llama(), PROMPT, max_new_tokens=8)
    _, stream = await collect(stream_llama(max_new_tokens=8, stop="never said", **make()))
    assert stream.token_ids == expected
    assert stream.finish_reason is FinishReason.LENGTH
