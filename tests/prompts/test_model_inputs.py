"""What the prompts become: padding, rows, and chats that go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from anystreamer import open_engine, stream_batch, stream_text

from ..helpers.tiny_models import CHAT_TEMPLATE, EOS, VOCABULARY, llama, new_tokenizer, tokenizer
from ..zoo.build import build

pytestmark = pytest.mark.torch

PROMPTS = ["one two three four five six seven", "one", "two, three"]

_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 300,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
}
_T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "decoder_start_token_id": EOS,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "Bart": _SIZES,
    "BlenderbotSmall": _SIZES,
    "Blenderbot": _SIZES,
    "M2M100": _SIZES,
    "MBart": _SIZES,
    "Marian": _SIZES,
    "Pegasus": _SIZES,
    "T5": _T5_SIZES,
    "MT5": _T5_SIZES,
    "UMT5": _T5_SIZES,
}


def encoder_decoder(name: str) -> Any:
    """A model of a few thousand weights, whose answers depend on all of its prompt."""
    suffix = "MTModel" if name == "Marian" else "ForConditionalGeneration"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = getattr(transformers, f"{name}Config")(**ENCODER_DECODERS[name])
        model = getattr(transformers, name + suffix)(config).eval()
        with torch.no_grad():
            for weights in model.parameters():
                if weights.dim() > 1:
                    weights.normal_(std=0.7)
    return model


def to_text(model: Any, prompt: str) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            **tokenizer()(prompt, return_tensors="pt"), max_new_tokens=6, eos_token_id=None
        )
    ids: list[int] = output[0, 1:].tolist()
    return ids


@pytest.mark.parametrize("name", ENCODER_DECODERS)
async def test_prompts_in_a_batch_of_an_encoder_decoder_are_answered_as_alone(name: str) -> None:
    """Encoders count positions from the start of a prompt, so padding is at its end."""
    model = encoder_decoder(name)
    expected = [to_text(model, each) for each in PROMPTS]
    assert len({tuple(ids) for ids in expected}) > 1
    async with stream_batch(
        model, tokenizer(), PROMPTS, max_new_tokens=6, eos_token_id=None
    ) as stream:
        await stream.read()
    assert stream.token_ids == expected
    assert stream.prompt_token_ids == [tokenizer().encode(each) for each in PROMPTS]


# -- Rows, where the prompt has no ids


def image_to_text() -> tuple[Any, dict[str, Any]]:
    vision = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    text = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    model = transformers.VisionEncoderDecoderModel(config=config).eval()
    model.generation_config.decoder_start_token_id = EOS
    model.generation_config.pad_token_id = EOS
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def patches_to_text() -> tuple[Any, dict[str, Any]]:
    config = transformers.Pix2StructConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "d_kv": 8,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": EOS,
            "eos_token_id": EOS,
            "pad_token_id": EOS,
        },
        vision_config={
            "hidden_size": 16,
            "patch_embed_hidden_size": 8,
            "d_ff": 16,
            "d_kv": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "seq_len": 6,
        },
    )
    model = transformers.Pix2StructForConditionalGeneration(config).eval()
    return model, {"flattened_patches": torch.rand(2, 6, 10), "attention_mask": torch.ones(2, 6)}


def speech_to_text() -> tuple[Any, dict[str, Any]]:
    config = transformers.MoonshineConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        decoder_start_token_id=EOS,
    )
    model = transformers.MoonshineForConditionalGeneration(config).eval()
    return model, {"input_values": torch.randn(2, 4000)}


WITHOUT_IDS = [image_to_text, patches_to_text, speech_to_text]


@pytest.mark.parametrize("new", WITHOUT_IDS)
async def test_rows_are_counted_by_the_models_main_input(
    new: Callable[[], tuple[Any, dict[str, Any]]],
) -> None:
    model, inputs = new()
    kwargs: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
    with torch.inference_mode():
        expected = model.generate(**inputs, **kwargs)[:, -4:].tolist()
    async with stream_batch(model, tokenizer(), inputs, **kwargs) as stream:
        await stream.read()
    assert stream.token_ids == expected


@pytest.mark.parametrize("new", WITHOUT_IDS)
def test_several_rows_are_refused_before_the_encoder_works(
    new: Callable[[], tuple[Any, dict[str, Any]]],
) -> None:
    model, inputs = new()
    with pytest.raises(ValueError, match="use stream_batch"):
        stream_text(model, tokenizer(), inputs, max_new_tokens=4)


# -- Chats


async def test_a_chat_whose_last_message_goes_on() -> None:
    """The template must not open a new message behind it."""
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, "}]
    closing = new_tokenizer()
    closing.chat_template = CHAT_TEMPLATE.replace("{%- if not loop.last", "{%- if true", 1)
    expected = closing.apply_chat_template(
        chat, continue_final_message=True, tokenize=True, return_dict=True
    )["input_ids"]
    async with stream_text(
        llama(),
        closing,
        chat,
        chat_template_kwargs={"continue_final_message": True},
        max_new_tokens=3,
    ) as stream:
        await stream.read()
    assert stream.prompt_token_ids == expected


async def test_samples_of_a_recording_are_not_ids() -> None:
    """`inputs` is the name of both. They are no tokens, of which an engine counts the prompt's."""
    tiny = build("SpeechEncoderDecoderModel")
    (samples,) = tiny.inputs(0).values()
    output = tiny.model.generate(samples, max_new_tokens=5)
    async with open_engine(tiny.model, tokenizer(), context_length=100) as engine:
        async with engine.stream_text({"inputs": samples}, max_new_tokens=5) as stream:
            await stream.read()
    assert stream.token_ids == output[0, 1:].tolist()
    assert stream.prompt_token_ids == []
    assert stream.usage is not None
    assert stream.usage.prompt_tokens == 0


async def test_a_model_whose_tokens_are_not_text_is_refused() -> None:
    tiny = build("DiaForConditionalGeneration")
    with pytest.raises(ValueError, match="generates audio, and stream_text\\(\\) streams text: "):
        stream_text(tiny.model, tokenizer(), "hello")
