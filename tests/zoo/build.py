"""Tiny models of all classes that transformers lists for making text, built from their configs.

What a config is made of differs from class to class. So the sizes that are known by name are made
small, in a few variants, until a model of the class can be built and can generate.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from .inputs import KINDS, Inputs
from .tokenizer import VOCABULARY

__all__ = ["VOCABULARY", "TinyModel", "build", "can_generate", "listed", "named"]

HEADS = 4
MOST_PARAMETERS = 30_000_000

# The lists of transformers whose models make text. Those that make speech, music or spectrograms
# alone are in others.
_LISTS = (
    "CAUSAL_LM IMAGE_TEXT_TO_TEXT MULTIMODAL_LM SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ CTC RNNT TDT "
    "VISUAL_QUESTION_ANSWERING"
).split()

_SIZES: dict[str, int] = {
    **dict.fromkeys("vocab_size vocab_size_per_layer_input".split(), VOCABULARY),
    **dict.fromkeys("hidden_size n_embd d_model embedding_size word_embed_proj_dim".split(), 32),
    **dict.fromkeys("embed_dim out_hidden_size lru_width moe_intermediate_size".split(), 32),
    **dict.fromkeys("expert_ffn_hidden_size moe_ffn_hidden_size".split(), 32),
    **dict.fromkeys("shared_expert_intermediate_size".split(), 32),
    **dict.fromkeys("num_hidden_layers n_layer n_layers num_layers depth".split(), 2),
    **dict.fromkeys("encoder_layers decoder_layers num_encoder_layers".split(), 2),
    **dict.fromkeys("num_attention_heads n_head n_heads num_heads".split(), HEADS),
    **dict.fromkeys("encoder_attention_heads decoder_attention_heads".split(), HEADS),
    **dict.fromkeys("num_key_value_heads num_kv_heads num_query_groups".split(), 2),
    **dict.fromkeys("linear_num_key_heads linear_num_value_heads".split(), 2),
    **dict.fromkeys("intermediate_size ffn_dim n_inner d_ff ffn_hidden_size".split(), 64),
    **dict.fromkeys("encoder_ffn_dim decoder_ffn_dim".split(), 64),
    **dict.fromkeys("head_dim global_head_dim kv_channels rotary_dim v_head_dim".split(), 8),
    **dict.fromkeys("qk_rope_head_dim qk_nope_head_dim linear_key_head_dim".split(), 8),
    **dict.fromkeys("linear_value_head_dim hidden_size_per_layer_input".split(), 8),
    **dict.fromkeys("qk_head_dim q_lora_rank kv_lora_rank image_size".split(), 16),
    **dict.fromkeys(
        "max_position_embeddings n_positions n_ctx max_seq_len seq_length".split(), 256
    ),
    **dict.fromkeys("num_experts num_local_experts n_routed_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok moe_topk top_k_experts".split(), 2),
    **dict.fromkeys("n_group topk_group first_k_dense_replace".split(), 1),
    **dict.fromkeys("state_size mamba_d_state patch_size attention_window".split(), 8),
    **dict.fromkeys("mamba_n_heads time_step_rank mamba_dt_rank".split(), 4),
    **dict.fromkeys("expand mamba_expand".split(), 2),
    "mamba_d_head": 16,
    # Recordings and images, and what reads them.
    **dict.fromkeys("num_mel_bins feature_size input_feat_per_channel".split(), 16),
    **dict.fromkeys("feature_projection_input_dim input_dim".split(), 16),
    "max_source_positions": 20,
    "max_target_positions": 64,
    "patch_embed_hidden_size": 192,
    **dict.fromkeys("encoder_hidden_size cross_attention_hidden_size".split(), 32),
    **dict.fromkeys("attention_hidden_size conv_channels t2u_encoder_ffn_dim".split(), 32),
    **dict.fromkeys("decoder_hidden_size cross_hidden_size subsampling_conv_channels".split(), 32),
    **dict.fromkeys("speech_encoder_layers t2u_encoder_layers t2u_decoder_layers".split(), 2),
    **dict.fromkeys("speech_encoder_attention_heads".split(), HEADS),
    **dict.fromkeys("speech_encoder_intermediate_size t2u_decoder_ffn_dim".split(), 32),
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0}

# Sizes that some configs leave out, which the model then does not work out.
_FILLED = {"head_dim"}

# What a model cannot generate without, by type.
_OWN: dict[str, dict[str, Any]] = {
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen3_omni_moe": {"enable_audio_output": False},
}

# Of models that are put together from two others: which ones.
_PARTS = {
    "encoder-decoder": ("bert", "bert"),
    "vision-encoder-decoder": ("vit", "bert"),
    "speech-encoder-decoder": ("wav2vec2", "bert"),
}

# Sizes to change, None to leave them as the config has them. Tried one after the other.
_VARIANTS: tuple[Mapping[str, int | None], ...] = (
    {},
    {"num_key_value_heads": HEADS, "num_kv_heads": HEADS},  # latent attention has no groups
    {"head_dim": None, "global_head_dim": None},
    {"head_dim": None, "global_head_dim": None, "num_key_value_heads": None},
    {"hidden_size": 512, "out_hidden_size": 512, "head_dim": 128},  # rotary sections of 64 or 32
    {"num_heads": 8, "mamba_n_heads": 8},  # twice the width, in heads of 8
    {"num_hidden_layers": None, "num_layers": None, "n_layer": None},
    dict.fromkeys([name for name in _SIZES if name.startswith(("mamba", "state", "time_step"))]),
)


@dataclass(frozen=True)
class TinyModel:
    """A model, and how to make inputs that it generates from."""

    model: Any
    inputs: Inputs


@cache
def named() -> dict[str, list[str]]:
    """The classes that transformers lists for making text, each with the types of its configs.

    Not all of them can generate: `listed()` has those that can, and has to import them all.
    """
    types: dict[str, list[str]] = {}
    for name in _LISTS:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {})
        for model_type, names in mapping.items():
            for class_name in names if isinstance(names, tuple) else (names,):
                types.setdefault(class_name, []).append(model_type)
    return {class_name: list(dict.fromkeys(each)) for class_name, each in types.items()}


def can_generate(class_name: str) -> bool:
    return bool(getattr(transformers, class_name).can_generate())


def listed() -> list[str]:
    """Those of `named()` that can generate. Their modules take seconds to import."""
    return list(filter(can_generate, named()))


def build(class_name: str) -> TinyModel:
    """A model of a class that can generate, with weights that make each part of it count.

    Raises:
        RuntimeError: no variant can; the causes are in its notes.
    """
    failure = RuntimeError(f"no tiny {class_name}")
    for model_type, variant in itertools.product(named()[class_name], _VARIANTS):
        try:
            model = _build(model_type, class_name, {**_SIZES, **variant})
        except Exception as exc:
            _add_cause(failure, exc)
            continue
        for inputs in KINDS[model.main_input_name]:
            try:
                model.generate(**inputs(0), max_new_tokens=2, do_sample=False)
            except Exception as exc:
                _add_cause(failure, exc)
            else:
                return TinyModel(model, inputs)
    raise failure


def _add_cause(failure: RuntimeError, cause: Exception) -> None:
    failure.add_note(f"{type(cause).__name__}: {str(cause)[:200]}")


def _build(model_type: str, class_name: str, sizes: Mapping[str, int | None]) -> Any:
    config = _new_config(model_type)
    for each in _with_sub_configs(config):
        _shrink(each, sizes)
    new_model: Any = getattr(transformers, class_name)
    with torch.device("meta"):  # takes no memory
        parameters = sum(each.numel() for each in new_model(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"it is not tiny: {parameters} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(config).eval()
        # As new models are made, attention hardly counts: another answer would not be seen.
        with torch.no_grad():
            for weights in model.parameters():
                if weights.dim() > 1:
                    weights.copy_(torch.randn(weights.shape) / weights.shape[-1] ** 0.5)
    _set_generation_config(model)
    return model


def _new_config(model_type: str) -> Any:
    if (parts := _PARTS.get(model_type)) is not None:
        encoder, decoder = (CONFIG_MAPPING[each]() for each in parts)
        new_config: Any = CONFIG_MAPPING[model_type]
        return new_config.from_encoder_decoder_configs(encoder, decoder)
    return CONFIG_MAPPING[model_type](**_OWN.get(model_type, {}))


def _set_generation_config(model: Any) -> None:
    config = model.generation_config
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            setattr(config, name, None)
    config.eos_token_id = None
    config.num_beams = 1
    config.pad_token_id = 2
    if config.decoder_start_token_id is None and model.config.is_encoder_decoder:
        config.decoder_start_token_id = 0


def _with_sub_configs(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (sub := getattr(config, name, None)) is not None:
            yield from _with_sub_configs(sub)


def _shrink(config: Any, sizes: Mapping[str, int | None]) -> None:
    layers = next((getattr(config, name) for name in _LAYERS if hasattr(config, name)), None)
    names = {*vars(config), *config.attribute_map, *getattr(config, "__dataclass_fields__", ())}
    for name in names:
        with contextlib.suppress(Exception):  # a name of another class, or a value by layer
            _shrink_one(config, name, sizes.get(name, _SPECIAL.get(name)))
    # A list with an entry for each layer keeps one of each kind.
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == layers and layers > 2:
            kinds = list(dict.fromkeys(value))
            setattr(config, name, (kinds * 2)[:2])
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        rope["mrope_section"] = [2, 1, 1]


def _shrink_one(config: Any, name: str, size: int | None) -> None:
    before = getattr(config, name)
    if size is None or isinstance(before, bool) or (before is None and name not in _FILLED):
        return
    setattr(config, name, [size] * min(len(before), 2) if isinstance(before, list) else size)
