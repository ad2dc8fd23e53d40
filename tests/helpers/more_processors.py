"""More families of tiny models that see and hear, whose processors need torchvision.

They differ from those of `tiny_processors` in how pictures, videos or recordings become inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import transformers

from .tiny_processors import EITHER, PARTS_ONLY, SIZES, Kind, new_model, pil, template, tokenizer_of

__all__ = ["MORE", "one_of_more"]

t: Any = transformers

_SEES = {**SIZES, "num_key_value_heads": None}


def _text(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    return {
        **SIZES,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **settings,
    }


def fast(name: str) -> Any:
    """An image processor that needs torchvision. Older releases name it so."""
    found = getattr(t, f"{name}ImageProcessor", None)
    return found or getattr(t, f"{name}ImageProcessorFast")


def _mistral3() -> Kind:
    """Pictures keep their shapes, with a token at the end of each row."""
    tokenizer = tokenizer_of("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    processor = t.PixtralProcessor(
        pil("Pixtral")(patch_size=4, size={"longest_edge": 32}),
        tokenizer,
        patch_size=4,
        spatial_merge_size=2,
        chat_template=template(EITHER, image="[IMG]"),
    )
    config = t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**_SEES, head_dim=16, image_size=32, patch_size=4),
        text_config=t.MistralConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    model = new_model(t.Mistral3ForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image",), "[IMG]")


def _idefics3() -> Kind:
    """Pictures are cut into tiles, and rows without pictures get empty ones."""
    names = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = tokenizer_of(*names, *_places(3))
    processor = t.Idefics3Processor(
        pil("Idefics3")(size={"longest_edge": 48}, max_image_size={"longest_edge": 16}),
        tokenizer,
        image_seq_len=4,
        chat_template=template(PARTS_ONLY, image="<image>"),
    )
    model = new_model(
        t.Idefics3ForConditionalGeneration, _idefics(t.Idefics3Config, tokenizer), tokenizer
    )
    return Kind(model, processor, ("image",), "<image>")


def _smolvlm() -> Kind:
    """The same, and videos, whose frames have their times in the prompt. It needs num2words."""
    names = (
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        "<video>",
    )
    tokenizer = tokenizer_of(*names, *_places(3))
    sizes = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
    processor = t.SmolVLMProcessor(
        pil("SmolVLM")(**sizes),
        tokenizer,
        t.SmolVLMVideoProcessor(**sizes, num_frames=4, fps=1),
        image_seq_len=4,
        chat_template=template(PARTS_ONLY, image="<image>", video="<video>"),
    )
    model = new_model(
        t.SmolVLMForConditionalGeneration, _idefics(t.SmolVLMConfig, tokenizer), tokenizer
    )
    return Kind(model, processor, ("image", "video"), "<image>")


def _places(count: int) -> list[str]:
    return [
        f"<row_{row}_col_{column}>" for row in range(1, 1 + count) for column in range(1, 1 + count)
    ]


def _idefics(config_class: Any, tokenizer: Any) -> Any:
    return config_class(
        vision_config={**_SEES, "image_size": 16, "patch_size": 4},
        text_config={**_text(tokenizer), "model_type": "llama"},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )


def _internvl() -> Kind:
    """Tiles of pictures and frames of videos go into one input, in the order of the text."""
    tokenizer = tokenizer_of(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = t.InternVLProcessor(
        pil("GotOcr2")(size={"height": 16, "width": 16}, min_patches=1, max_patches=3),
        tokenizer,
        t.InternVLVideoProcessor(size={"height": 16, "width": 16}),
        image_seq_length=4,
        chat_template=template(EITHER, image="<IMG_CONTEXT>", video="<video>"),
    )
    config = t.InternVLConfig(
        vision_config={
            **_SEES,
            "image_size": [16, 16],
            "patch_size": [4, 4],
            "norm_type": "layer_norm",
        },
        text_config=t.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    model = new_model(t.InternVLForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image", "video"), "<IMG_CONTEXT>")


def _llava_onevision() -> Kind:
    """Tiles as the shape of a picture asks for, and videos with fewer tokens."""
    tokenizer = tokenizer_of("<image>", "<video>", image_token="<image>", video_token="<video>")
    size = {"height": 16, "width": 16}
    processor = t.LlavaOnevisionProcessor(
        pil("LlavaOnevision")(size=size, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]),
        tokenizer,
        t.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template(PARTS_ONLY, image="<image>", video="<video>"),
    )
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(
            **_SEES, image_size=16, patch_size=4, vision_use_head=False
        ),
        text_config=t.Qwen2Config(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-1,
    )
    model = new_model(t.LlavaOnevisionForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image", "video"), "<image>")


def _aya_vision() -> Kind:
    """Tiles with names between them, which are text."""
    tokenizer = tokenizer_of("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>")
    processor = t.AyaVisionProcessor(
        pil("GotOcr2")(size={"height": 16, "width": 16}, min_patches=1, max_patches=3),
        tokenizer,
        patch_size=4,
        img_size=16,
        downsample_factor=2,
        chat_template=template(EITHER, image="<image>"),
    )
    config = t.AyaVisionConfig(
        vision_config=t.SiglipVisionConfig(
            **_SEES, image_size=16, patch_size=4, vision_use_head=False
        ),
        text_config=t.Cohere2Config(**_text(tokenizer), sliding_window=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        vision_feature_layer=-1,
    )
    model = new_model(t.AyaVisionForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image",), "<image>")


def _llama4() -> Kind:
    """Tiles with separators, and attention in chunks."""
    names = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>")
    tokenizer = tokenizer_of(*names, "<|tile_x_separator|>", "<|tile_y_separator|>")
    processor = t.Llama4Processor(
        fast("Llama4")(size={"height": 16, "width": 16}, max_patches=4),
        tokenizer,
        patch_size=4,
        pixel_shuffle_ratio=0.5,
        chat_template=template(EITHER, image="<|image|>"),
    )
    config = t.Llama4Config(
        vision_config=t.Llama4VisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
        ),
        text_config=t.Llama4TextConfig(
            **_text(tokenizer),
            intermediate_size_mlp=32,
            num_local_experts=2,
            attention_chunk_size=64,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    # The processor's pixels have this type, and plain `generate()` takes them as they are.
    model = new_model(t.Llama4ForConditionalGeneration, config, tokenizer).bfloat16()
    return Kind(model, processor, ("image",), "<|image|>")


def _qwen_omni() -> Kind:
    """The part of Qwen2.5-Omni that writes: pictures, videos and recordings."""
    named = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tokenizer = tokenizer_of(**named)
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2}
    area = {"shortest_edge": 8 * 8, "longest_edge": 24 * 24}
    processor = t.Qwen2_5OmniProcessor(
        pil("Qwen2VL")(**sizes, size=area),
        t.Qwen2VLVideoProcessor(**sizes, size=area, min_frames=2, max_frames=8),
        t.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        tokenizer,
        chat_template=template(
            EITHER,
            **{
                medium: f"<|{kind}_bos|><|{medium.upper()}|><|{kind}_eos|>"
                for medium, kind in (("image", "vision"), ("video", "vision"), ("audio", "audio"))
            },
        ),
    )
    ids = tokenizer.convert_tokens_to_ids
    config = t.Qwen2_5OmniThinkerConfig(
        audio_config={
            "num_mel_bins": 16,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "output_dim": 32,
            "n_window": 20,
            "max_source_positions": 100,
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 16,
        },
        text_config=_text(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
            },
        ),
        audio_token_index=ids("<|AUDIO|>"),
        image_token_index=ids("<|IMAGE|>"),
        video_token_index=ids("<|VIDEO|>"),
        audio_start_token_id=ids("<|audio_bos|>"),
        audio_end_token_id=ids("<|audio_eos|>"),
        vision_start_token_id=ids("<|vision_bos|>"),
        vision_end_token_id=ids("<|vision_eos|>"),
    )
    model = new_model(t.Qwen2_5OmniThinkerForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image", "audio", "video"), "<|IMAGE|>")


def _phi4() -> Kind:
    """Recordings. The tokens of its pictures are of 448 pixels, which takes long."""
    tokenizer = tokenizer_of(image_token="<|image|>", audio_token="<|audio|>")
    processor = t.Phi4MultimodalProcessor(
        fast("Phi4Multimodal")(size={"height": 16, "width": 16}, dynamic_hd=2, patch_size=4),
        t.Phi4MultimodalFeatureExtractor(),
        tokenizer,
        chat_template=template(EITHER, image="<|image|>", audio="<|audio|>"),
    )
    ids = tokenizer.convert_tokens_to_ids
    text = _text(tokenizer)
    text.pop("head_dim")
    config = t.Phi4MultimodalConfig(
        **text,
        vision_config={
            **{name: value for name, value in _SEES.items() if value is not None},
            "image_size": 16,
            "crop_size": 16,
            "patch_size": 4,
            "image_token_id": ids("<|image|>"),
        },
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
            "audio_token_id": ids("<|audio|>"),
        },
    )
    model = new_model(t.Phi4MultimodalForCausalLM, config, tokenizer)
    return Kind(model, processor, ("audio",), "<|audio|>")


MORE: dict[str, Callable[[], Kind]] = {
    "internvl": _internvl,
    "mistral3": _mistral3,
    "qwen2.5-omni": _qwen_omni,
    "aya-vision": _aya_vision,
    "idefics3": _idefics3,
    "llama4": _llama4,
    "llava-onevision": _llava_onevision,
    "phi4": _phi4,
    "smolvlm": _smolvlm,
}


@cache
def one_of_more(name: str) -> Kind:
    return MORE[name]()
