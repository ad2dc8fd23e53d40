"""Encoder-decoders: from text to text, and from speech to text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import ENDLESS, PROMPT, collect, inputs_of, says
from ..helpers.own_ends import SUSPECTS
from ..helpers.tiny_models import (
    EOS,
    WHISPER_FRAMES,
    Say,
    generated,
    ids_of,
    steps_of,
    t5,
    tokenizer,
    whisper,
)

pytestmark = pytest.mark.torch


async def test_an_encoder_decoder() -> None:
    say = says("le chat", EOS)
    _, stream = await collect(stream_text(t5(), tokenizer(), "the cat", **say))
    assert (stream.text, stream.finish_reason) == ("le chat", FinishReason.EOS)
    assert stream.prompt_token_ids == ids_of("the cat")
    assert stream.usage.prompt_tokens == len("the cat")
    assert stream.output[0].tolist() == [EOS, *stream.token_ids]


async def test_an_encoder_decoder_makes_the_same_tokens_as_generate() -> None:
    kwargs: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 10}
    expected = generated(t5(), PROMPT, **kwargs)
    _, stream = await collect(stream_text(t5(), tokenizer(), PROMPT, **kwargs))
    assert stream.token_ids == expected
    assert stream.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("suspect", SUSPECTS)
async def test_finish_reason_length_of_an_encoder_decoder(suspect: str) -> None:
    """`max_length` is the decoder's, with its start token."""
    kwargs: dict[str, Any] = {"logits_processor": [Say("abcdefgh")], "max_length": 6} | SUSPECTS[
        suspect
    ]()
    _, stream = await collect(stream_text(t5(), tokenizer(), PROMPT, **kwargs))
    assert (stream.text, stream.finish_reason) == ("abcde", FinishReason.LENGTH)


async def test_an_encoder_decoder_with_a_prompt_for_its_decoder() -> None:
    """It belongs neither to the text nor to the prompt."""
    start = torch.tensor([[EOS, *ids_of("le ")]])
    prompt = {**inputs_of("the cat"), "decoder_input_ids": start}
    _, stream = await collect(
        stream_text(t5(), tokenizer(), prompt, **says("chat", EOS), stop="xx")
    )
    assert stream.text == "chat"
    assert stream.output[0].tolist() == [*start[0].tolist(), *stream.token_ids]


async def test_stop_strings_of_an_encoder_decoder() -> None:
    kwargs: dict[str, Any] = {"logits_processor": [Say("le chat noir")], **ENDLESS}
    with steps_of(t5()) as steps:
        _, stream = await collect(stream_text(t5(), tokenizer(), "the cat", stop="at", **kwargs))
    assert (stream.text, stream.stop_string) == ("le ch", "at")
    assert steps.count == len("le chat")


def features(length: int = WHISPER_FRAMES) -> Any:
    return torch.randn(1, 4, length, generator=torch.Generator().manual_seed(0))


async def test_speech_to_text() -> None:
    """Whisper's own `generate()`, around the common one."""
    say = says("hello", EOS)
    context = stream_text(whisper(), tokenizer(), {"input_features": features()}, **say)
    _, stream = await collect(context)
    assert (stream.text, stream.finish_reason) == ("hello", FinishReason.EOS)
    assert stream.prompt_token_ids == []


async def test_speech_to_text_stops_within_a_step() -> None:
    with steps_of(whisper(), {3: lambda: stream.stop()}) as steps:
        kwargs: dict[str, Any] = {"logits_processor": [Say("hello there")], "max_new_tokens": 50}
        prompt = {"input_features": features()}
        async with stream_text(whisper(), tokenizer(), prompt, **kwargs) as stream:
            assert await stream.read() == "hel"
    assert steps.count == 3


async def test_a_batch_of_speech_is_refused() -> None:
    with steps_of(whisper()) as steps:
        with pytest.raises(ValueError, match=r"'input_features'.* has 2 rows"):
            prompt = {"input_features": torch.cat([features(), features()])}
            stream_text(whisper(), tokenizer(), prompt)
    assert steps.count == 0
