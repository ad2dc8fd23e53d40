"""Tiny decoders of many families, with random weights that make their answers depend on all ids.

They compute in double precision: with and without a cache the same tokens are then the likeliest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, BloomForCausalLM, LogitsProcessor

from .tiny_models import EOS, VOCABULARY

__all__ = ["OTHERS", "POSITIONS", "WITH_FULL_ATTENTION", "Passes", "Varied", "decoder", "passes_of"]

LAYERS = 3
POSITIONS = 1024


def _config(name: str, **settings: Any) -> Any:
    common = {
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "initializer_range": 0.4,
    }
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
    }
    return getattr(transformers, f"{name}Config")(**{**common, **sizes, **settings})


_WINDOW = 8
_ROPE = {"rope_theta": 10_000.0}

#: Every layer of these attends to all positions.
WITH_FULL_ATTENTION: dict[str, Callable[[], Any]] = {
    "Llama": lambda: _config("Llama"),
    "Qwen2": lambda: _config("Qwen2", use_sliding_window=False),
    "Qwen3": lambda: _config("Qwen3", head_dim=8),
    "GPT-2": lambda: _config("GPT2", n_embd=16, n_layer=LAYERS, n_head=2, n_positions=POSITIONS),
    "GPT-NeoX": lambda: _config("GPTNeoX"),
    "Falcon": lambda: _config("Falcon", alibi=False),
    "OPT": lambda: _config("OPT", ffn_dim=32, word_embed_proj_dim=16),
    "Mistral without a window": lambda: _config("Mistral", sliding_window=None),
    "Llama with YaRN": lambda: _config(
        "Llama", rope_parameters={"rope_type": "yarn", "factor": 2.0, **_ROPE}
    ),
}
# In older releases, Bloom prepares its inputs in a way of its own.
if "prepare_inputs_for_generation" not in vars(BloomForCausalLM):
    WITH_FULL_ATTENTION["Bloom"] = lambda: _config("Bloom", n_layer=LAYERS, n_head=2)

#: In these, the cache of a text's first part depends on the rest of the text, or is lost.
OTHERS: dict[str, Callable[[], Any]] = {
    "Mistral": lambda: _config("Mistral", sliding_window=_WINDOW),
    "Gemma 2": lambda: _config("Gemma2", sliding_window=_WINDOW, head_dim=8),
    "Gemma 3": lambda: _config(
        "Gemma3Text", sliding_window=_WINDOW, head_dim=8, sliding_window_pattern=2
    ),
    "Mamba": lambda: _config("Mamba", state_size=4),
    "Mamba 2": lambda: _config(
        "Mamba2", state_size=4, num_heads=4, head_dim=8, n_groups=1, expand=2
    ),
    "LFM2": lambda: _config("Lfm2", layer_types=["conv", "full_attention", "conv"]),
    "Llama with dynamic NTK": lambda: _config(
        "Llama",
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, **_ROPE},
    ),
    "Phi 3 with LongRoPE": lambda: _config(
        "Phi3",
        original_max_position_embeddings=16,
        sliding_window=None,
        rope_parameters={
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 16,
            **_ROPE,
        },
    ),
}


@cache
def decoder(family: str) -> Any:
    """A model of a family, of `WITH_FULL_ATTENTION` or `OTHERS`."""
    config = {**WITH_FULL_ATTENTION, **OTHERS}[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model: Any = AutoModelForCausalLM.from_config(config)
    model.generation_config.pad_token_id = EOS
    return model.double().eval()


class Varied(LogitsProcessor):
    """Adds noise that depends on the position alone, so that answers do not repeat themselves."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._seed * POSITIONS + input_ids.shape[1])
        noise = torch.rand(scores.shape, generator=generator)
        return scores - noise.log().neg().log()


class Passes:
    """Records how many tokens each forward pass of a model has computed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def hook(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.tokens.append(kwargs["input_ids"].shape[1])


@contextlib.contextmanager
def passes_of(model: Any) -> Iterator[Passes]:
    """Count the tokens of a model's forward passes in this block."""
    passes = Passes()
    handle = model.register_forward_pre_hook(passes.hook, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
