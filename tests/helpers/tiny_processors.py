"""Tiny models that see and hear, with their processors, made in memory. See `tiny_models`."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["NAMES", "Kind", "clip", "kind_named", "picture", "png", "recording", "video", "wav"]

# As LLaVA's and Qwen2-Audio's: contents must be lists of parts, not strings.
PARTS_ONLY = """
{%- for message in messages %}
    {{- message.role + ":" }}
    {%- for part in message.content %}
        {%- if part.type in PLACEHOLDERS %}{{ PLACEHOLDERS[part.type] }}
        {%- elif part.type == "text" %}{{ part.text }}{% endif %}
    {%- endfor %}
    {{- "<end>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "assistant:" }}{% endif %}
"""
# As Qwen-VL's and Gemma's: contents can be strings, too.
EITHER = PARTS_ONLY.replace(
    "{%- for part in message.content %}",
    "{%- if message.content is string %}{{ message.content }}{% endif %}"
    "{%- for part in message.content if message.content is not string %}",
)
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Kind:
    """A model with its processor.

    Args:
        model: with random weights.
        processor: its own class of processor.
        media: what it takes: ``"image"``, ``"audio"``, ``"video"``.
        placeholder: the token that its template puts where a picture or a recording is.
    """

    model: Any
    processor: Any
    media: tuple[str, ...]
    placeholder: str


def tokenizer_of(*special: str, **named: str) -> Any:
    """A token for each byte, and special tokens."""
    vocabulary = {char: number for number, char in enumerate(_ALPHABET)}
    tokens = ["<eos>", "<end>", *special]
    vocabulary |= {token: len(vocabulary) + number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named,
    )


def template(template: str, **placeholders: str) -> str:
    return f"{{%- set PLACEHOLDERS = {placeholders} %}}{template}"


def new_model(model_class: Any, config: Any, tokenizer: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config.tie_word_embeddings = False
        model = model_class(config)
        with torch.no_grad():
            for weights in model.parameters():
                # So that an answer depends on the picture. With the usual weights, it hardly does.
                if weights.dim() > 1:
                    weights.copy_(torch.randn(weights.shape) / math.sqrt(weights.shape[-1]))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # By itself, the model generates letters only, no special tokens.
    model.get_output_embeddings().weight.data[len(_ALPHABET) :] = 0
    return model.eval()


def _llava() -> Kind:
    t = transformers
    tokenizer = tokenizer_of("<image>", image_token="<image>")
    processor = t.LlavaProcessor(
        pil("CLIP")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(PARTS_ONLY, image="<image>"),
    )
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(
            **{**SIZES, "num_key_value_heads": None}, image_size=16, patch_size=8
        ),
        text_config=t.LlamaConfig(**SIZES, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = new_model(t.LlavaForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image",), "<image>")


class _WithoutVideos:
    """A processor without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        if name == "video_processor":
            return None
        return super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]


def _qwen(version: str, *, has_videos: bool = False) -> Kind:
    t: Any = transformers
    tokenizer = tokenizer_of("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    processor_class = getattr(t, f"{version}Processor")
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2}
    videos = None
    if not has_videos:
        processor_class = type(processor_class.__name__, (_WithoutVideos, processor_class), {})
    else:
        video_class = t.Qwen3VLVideoProcessor if version == "Qwen3VL" else t.Qwen2VLVideoProcessor
        # In the third, it bounds the pixels of all frames together.
        area = {
            "shortest_edge": 8 * 8,
            "longest_edge": 24 * 24 * (8 if version == "Qwen3VL" else 1),
        }
        videos = video_class(**sizes, size=area, min_frames=2, max_frames=8)
    processor = processor_class(
        pil("Qwen2VL")(**sizes, size={"shortest_edge": 8 * 8, "longest_edge": 24 * 24}),
        tokenizer,
        videos,
        chat_template=template(
            EITHER,
            image="<|vision_start|><|image_pad|><|vision_end|>",
            video="<|vision_start|><|video_pad|><|vision_end|>",
        ),
    )
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "hidden_size": 32}
    if version == "Qwen2VL":
        vision |= {"embed_dim": 32, "mlp_ratio": 1}
    elif version == "Qwen2_5_VL":
        vision |= {"out_hidden_size": 32, "intermediate_size": 32, "fullatt_block_indexes": [1]}
        vision |= {"window_size": 16}
    else:
        vision |= {"out_hidden_size": 32, "intermediate_size": 32, "deepstack_visual_indexes": [0]}
        vision |= {"num_position_embeddings": 16}
    ids = tokenizer.convert_tokens_to_ids
    config = getattr(t, f"{version}Config")(
        vision_config=vision,
        text_config={
            **SIZES,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = new_model(getattr(t, f"{version}ForConditionalGeneration"), config, tokenizer)
    if has_videos:
        return Kind(model, processor, ("video",), "<|video_pad|>")
    return Kind(model, processor, ("image",), "<|image_pad|>")


def _gemma3() -> Kind:
    t = transformers
    tokenizer = tokenizer_of(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    processor = t.Gemma3Processor(
        pil("Gemma3")(size={"height": 16, "width": 16}),
        tokenizer,
        image_seq_length=4,
        chat_template=template(EITHER, image="<start_of_image>"),
    )
    ids = tokenizer.convert_tokens_to_ids
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(
            **SIZES,
            head_dim=16,
            sliding_window=16,
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=t.SiglipVisionConfig(
            **{**SIZES, "num_key_value_heads": None}, image_size=16, patch_size=8
        ),
        mm_tokens_per_image=4,
        image_token_index=ids("<image_soft_token>"),
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
    )
    model = new_model(t.Gemma3ForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("image",), "<start_of_image>")


def _gemma4(medium: str) -> Kind:
    t: Any = transformers
    tokenizer = tokenizer_of(
        **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
        **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
        video_token="<|video|>",
    )
    processor = type("Gemma4Processor", (_WithoutVideos, t.Gemma4Processor), {})(
        t.Gemma4AudioFeatureExtractor(feature_size=16),
        pil("Gemma4")(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3),
        tokenizer,
        None,
        chat_template=template(EITHER, image="<|image|>", audio="<|audio|>"),
    )
    ids = tokenizer.convert_tokens_to_ids
    config = t.Gemma4Config(
        text_config=t.Gemma4TextConfig(
            **SIZES,
            head_dim=16,
            sliding_window=16,
            vocab_size=len(tokenizer),
            vocab_size_per_layer_input=len(tokenizer),
            hidden_size_per_layer_input=8,
            layer_types=["sliding_attention", "full_attention"],
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=t.Gemma4VisionConfig(
            **SIZES, head_dim=16, patch_size=4, pooling_kernel_size=3, position_embedding_size=64
        ),
        audio_config=t.Gemma4AudioConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            output_proj_dims=32,
            subsampling_conv_channels=(16, 4),
        ),
        image_token_id=ids("<|image|>"),
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        audio_token_id=ids("<|audio|>"),
        boa_token_id=ids("<|audio>"),
        eoa_token_index=ids("<audio|>"),
        video_token_id=ids("<|video|>"),
    )
    model = new_model(t.Gemma4ForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, (medium,), f"<|{medium}|>")


def _qwen2_audio() -> Kind:
    t = transformers
    tokenizer = tokenizer_of("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    processor = t.Qwen2AudioProcessor(
        t.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        tokenizer,
        chat_template=template(PARTS_ONLY, audio="<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )
    config = t.Qwen2AudioConfig(
        audio_config=t.Qwen2AudioEncoderConfig(
            num_mel_bins=16,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            max_source_positions=100,
        ),
        text_config=t.Qwen2Config(**SIZES, vocab_size=len(tokenizer)),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = new_model(t.Qwen2AudioForConditionalGeneration, config, tokenizer)
    return Kind(model, processor, ("audio",), "<|AUDIO|>")


def pil(name: str) -> Any:
    """An image processor that needs no torchvision. Older releases have one kind only."""
    found = getattr(transformers, f"{name}ImageProcessorPil", None)
    return found or getattr(transformers, f"{name}ImageProcessor")


_MAKERS: dict[str, Callable[[], Kind]] = {
    "llava": _llava,
    "qwen2-vl": lambda: _qwen("Qwen2VL"),
    "qwen2.5-vl": lambda: _qwen("Qwen2_5_VL"),
    "qwen3-vl": lambda: _qwen("Qwen3VL"),
    "gemma3": _gemma3,
    "qwen2-audio": _qwen2_audio,
}
if hasattr(transformers, "Gemma4Processor"):
    _MAKERS |= {
        "gemma4, pictures": lambda: _gemma4("image"),
        "gemma4, sound": lambda: _gemma4("audio"),
    }
NAMES: Sequence[str] = tuple(_MAKERS)
# These need torchvision.
_MAKERS |= {
    "qwen2.5-vl, videos": lambda: _qwen("Qwen2_5_VL", has_videos=True),
    "qwen3-vl, videos": lambda: _qwen("Qwen3VL", has_videos=True),
}


@cache
def kind_named(name: str) -> Kind:
    return _MAKERS[name]()


def picture(number: int = 0, width: int = 24, height: int = 16) -> Image.Image:
    """A picture of noise. For a picture with another number, a model gives another answer."""
    values = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def recording(number: int = 0, seconds: float = 0.5, rate: int = 16_000) -> Any:
    """A tone: an array of floats that are whole in 16 bits."""
    tone = np.sin(np.arange(int(seconds * rate)) * (number + 1) * 700 / rate)
    return (tone * 2**14).astype(np.int16).astype(np.float32) / 2**15


def wav(samples: Any, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 2**15).astype("<i2").tobytes())
    return buffer.getvalue()


def clip(number: int = 0, count: int = 4, width: int = 24, height: int = 16) -> Any:
    """The frames of a video: an array of bytes of shape (count, height, width, 3)."""
    shape = (count, height, width, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def video(frames: Any, kind: str = "mp4", codec: str = "mpeg4", rate: int = 4) -> bytes:
    """The file of a video, by PyAV."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
