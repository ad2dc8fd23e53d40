"""A generate() that never calls its streamer: the text is in what it returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.utils.generic import ModelOutput

from anystreamer import FinishReason, stream_batch, stream_text
from anystreamer._generation.returned_tokens import returned_tokens

from ..helpers.tiny_models import EOS, VOCABULARY, generated, llama, t5, tokenizer

pytestmark = pytest.mark.torch

PROMPTS = ["one", "two, three"]


class Silent:
    """A model whose generate() takes a streamer, and does not call it."""

    training = False

    def __init__(self, model: Any, **kwargs: Any) -> None:
        self._model = model
        self._kwargs = kwargs
        self.config = model.config
        self.generation_config = model.generation_config
        self.device = model.device

    def generate(self, *, streamer: Any, stopping_criteria: Any, **kwargs: Any) -> Any:
        return self._model.generate(**kwargs, **self._kwargs)


async def test_the_new_tokens_are_delivered_at_the_end() -> None:
    expected = generated(llama(), "one", max_new_tokens=8)
    async with stream_text(Silent(llama()), tokenizer(), "one", max_new_tokens=8) as stream:
        text = await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (expected, FinishReason.LENGTH)
    assert text == stream.text == tokenizer().decode(expected, skip_special_tokens=True)
    assert stream.usage is not None
    assert stream.usage.completion_tokens == stream.usage.computed_tokens == 8


async def test_a_dictionary_of_results() -> None:
    expected = generated(llama(), "one", max_new_tokens=8)
    silent = Silent(llama(), return_dict_in_generate=True)
    async with stream_text(silent, tokenizer(), "one", max_new_tokens=8) as stream:
        await stream.read()
    assert stream.token_ids == expected


async def test_an_end_of_sequence_and_a_stop_string() -> None:
    ids = generated(llama(), "one", max_new_tokens=8)
    silent = Silent(llama())
    async with stream_text(
        silent, tokenizer(), "one", max_new_tokens=8, eos_token_id=ids[3]
    ) as stream:
        await stream.read()
    assert (stream.token_ids, stream.finish_reason) == (ids[:4], FinishReason.EOS)
    text = tokenizer().decode(ids, skip_special_tokens=True)
    async with stream_text(silent, tokenizer(), "one", max_new_tokens=8, stop=text[2]) as stream:
        await stream.read()
    assert stream.text == text[: text.index(text[2])]
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, text[2])


async def test_each_row_of_a_batch_ends_at_its_own_end() -> None:
    rows = [generated(llama(), each, max_new_tokens=8) for each in PROMPTS]
    eos = rows[0][3]
    expected = [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in rows]
    async with stream_batch(
        Silent(llama()), tokenizer(), PROMPTS, max_new_tokens=8, eos_token_id=eos
    ) as stream:
        await stream.read()
    assert stream.token_ids == expected


async def test_an_encoder_decoder_does_not_repeat_the_prompt() -> None:
    kwargs: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None}
    expected = generated(t5(), "one", **kwargs)
    async with stream_text(Silent(t5()), tokenizer(), "one", **kwargs) as stream:
        await stream.read()
    assert stream.token_ids == expected


async def test_speech_without_a_decoder() -> None:
    """One forward pass over a recording makes all its tokens; no limit is for them."""
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_mel_bins": 8,
        "subsampling_conv_channels": 4,
    }
    config = transformers.ParakeetCTCConfig(
        vocab_size=VOCABULARY, encoder_config=encoder, pad_token_id=EOS
    )
    model = transformers.ParakeetForCTC(config).eval()
    inputs = {"input_features": torch.randn(1, 400, 8)}
    with torch.inference_mode():
        expected = model.generate(**inputs)[0].tolist()
    assert len(expected) > 20
    async with stream_text(model, tokenizer(), inputs) as stream:
        await stream.read()
    assert stream.token_ids == expected
    assert stream.finish_reason is FinishReason.EOS


@pytest.mark.parametrize("output", [None, "text", [1.5], torch.ones(3, 4, dtype=torch.long)])
async def test_a_result_without_ids_is_an_error(output: Any) -> None:
    class Useless(Silent):
        def generate(self, **kwargs: Any) -> Any:
            return output

    async with stream_text(Useless(llama()), tokenizer(), "one", max_new_tokens=8) as stream:
        with pytest.raises(RuntimeError, match=r"never called its streamer.*stream_from_thread"):
            await stream.read()


@pytest.mark.parametrize("kind", [lambda ids: ids, lambda ids: ModelOutput(sequences=ids)])
def test_ids_are_taken_from_any_result(kind: Any) -> None:
    ids = kind(torch.tensor([[1, 2, 3, 4]]))
    assert returned_tokens(ids, 1) == [[1, 2, 3, 4]]
    assert returned_tokens(ids, 1, torch.tensor([[1, 2]])) == [[3, 4]]
    assert returned_tokens(ids, 1, torch.tensor([[1, 3]])) == [[1, 2, 3, 4]]
    assert returned_tokens(ids, 1, None, 1) == [[2, 3, 4]]


def test_what_fills_up_a_row_of_several_is_not_its_own() -> None:
    """A row alone has nothing to be filled up to: what follows its end was made."""
    ids = torch.tensor([[1, 9, 9, 9], [1, 2, 9, 4]])
    assert returned_tokens(ids, 2, None, None, [9]) == [[1, 9], [1, 2, 9]]
    assert returned_tokens(ids[1:], 1, None, None, [9]) == [[1, 2, 9, 4]]
