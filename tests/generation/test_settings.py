"""Which value of a setting counts: an explicit None or 0 is a value, as it is for generate()."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import GenerationConfig

from anystreamer import FinishReason, open_engine, stream_batch, stream_text

from ..helpers.tiny_models import generated, ids_of, new_llama, tokenizer

pytestmark = pytest.mark.torch

PROMPT = "one"


@pytest.fixture
def model() -> Any:
    """Its own generation config ends the text at a token that it makes early."""
    model = new_llama()
    early = generated(model, PROMPT, max_new_tokens=8, eos_token_id=None)[3]
    model.generation_config.eos_token_id = early
    model.generation_config.max_new_tokens = 6
    return model


async def test_without_an_argument_the_models_own_setting_counts(model: Any) -> None:
    async with stream_text(model, tokenizer(), PROMPT) as stream:
        await stream.read()
    assert (len(stream.token_ids), stream.finish_reason) == (4, FinishReason.EOS)


async def test_no_end_of_sequence_in_a_stream(model: Any) -> None:
    expected = generated(model, PROMPT, max_new_tokens=8, eos_token_id=None)
    async with stream_text(
        model, tokenizer(), PROMPT, max_new_tokens=8, eos_token_id=None
    ) as stream:
        await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (expected, FinishReason.LENGTH)


async def test_no_end_of_sequence_in_a_batch(model: Any) -> None:
    prompts = [PROMPT, "two, three"]
    expected = [generated(model, each, max_new_tokens=8, eos_token_id=None) for each in prompts]
    async with stream_batch(
        model, tokenizer(), prompts, max_new_tokens=8, eos_token_id=None
    ) as stream:
        await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (expected, [FinishReason.LENGTH] * 2)


@pytest.mark.parametrize(
    "batching",
    [
        "none",
        pytest.param(
            "continuous",
            marks=pytest.mark.skipif(
                not hasattr(getattr(transformers, "ContinuousBatchingConfig", None), "page_size"),
                reason="this transformers is too old for continuous batching",
            ),
        ),
    ],
)
async def test_no_end_of_sequence_in_an_engine(model: Any, batching: Any) -> None:
    expected = generated(model, PROMPT, max_new_tokens=8, eos_token_id=None)
    async with (
        open_engine(model, tokenizer(), batching=batching) as engine,
        engine.stream_text(PROMPT, max_new_tokens=8, eos_token_id=None) as stream,
    ):
        await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (expected, FinishReason.LENGTH)


async def test_no_limit_of_new_tokens(model: Any) -> None:
    length = len(ids_of(PROMPT)) + 10
    kwargs: dict[str, Any] = {"max_new_tokens": None, "max_length": length, "eos_token_id": None}
    async with stream_text(model, tokenizer(), PROMPT, **kwargs) as stream:
        await stream.read()
    assert (len(stream.token_ids), stream.finish_reason) == (10, FinishReason.LENGTH)


async def test_none_in_a_generation_config_is_not_given(model: Any) -> None:
    """`generate()` fills it from the model's own."""
    config = GenerationConfig(max_new_tokens=8, eos_token_id=None)
    async with stream_text(model, tokenizer(), PROMPT, generation_config=config) as stream:
        await stream.read()
    assert (len(stream.token_ids), stream.finish_reason) == (4, FinishReason.EOS)


async def test_no_time_at_all(model: Any) -> None:
    async with stream_text(
        model, tokenizer(), PROMPT, max_new_tokens=8, eos_token_id=None, max_time=0
    ) as stream:
        await stream.read()
    assert (len(stream.token_ids), stream.finish_reason) == (1, FinishReason.TIME)


@pytest.mark.parametrize("name", ["stop_strings", "max_time"])
async def test_none_switches_off_what_the_model_has_on(name: str, model: Any) -> None:
    value = {"stop_strings": ["e"], "max_time": 1e-9}[name]
    setattr(model.generation_config, name, value)
    kwargs: dict[str, Any] = {"eos_token_id": None, name: None}
    expected = generated(model, PROMPT, **kwargs)
    async with stream_text(model, tokenizer(), PROMPT, **kwargs) as stream:
        await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (expected, FinishReason.LENGTH)
