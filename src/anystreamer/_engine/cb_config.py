"""What a manager of continuous batching is made of: checked settings, and a cache that fits."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from .._kept_caches import free_bytes
from .._model import is_encoder_decoder, text_config
from .base import MAX_RUNNING

__all__ = [
    "SAMPLING",
    "Settings",
    "check_cb_config",
    "is_neutral_penalty",
    "validate_cb_config",
]

# The default size of the cache: this many tokens for each request that runs, or one request of the
# model's full length if that is more. Where attention has no kernel for pages it reads through a
# mask as wide as the cache, so on a CPU the cache is smaller.
TOKENS_EACH = 2048
TOKENS_EACH_ON_CPU = 512

# This many tokens, of prompts and of texts, go into one step; smaller on a CPU for the same reason.
BATCH_TOKENS = 2048
BATCH_TOKENS_ON_CPU = 256

# The share of the free memory that the cache can take.
MEMORY_SHARE = 0.8
MEMORY_SHARE_ON_CPU = 0.3

# The cache of a manager that only answers two short prompts. Each kind of attention takes its own
# part of it.
TRIAL_BLOCKS = 16
TRIAL_BATCH_TOKENS = 64

#: How each request can choose its tokens, with the defaults of transformers.
SAMPLING: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}

# What the manager would ignore with a warning, and the values that change nothing.
_IGNORED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "min_p": (None, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "suppress_tokens": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the manager of an engine is made of."""

    max_running: int
    config: Any  # transformers' ContinuousBatchingConfig, or None for one of a suitable size

    def for_manager(self, model: Any) -> Any:
        """The config for one manager, which writes into it."""
        config = (
            _sized_config(model, self.max_running) if self.config is None else deepcopy(self.config)
        )
        config.max_requests_per_batch = self.max_running
        # Unlimited: the engine's own queue is before it, and a full one blocks.
        config.max_queue_size = 0
        config.per_request_processors = config.return_logprobs = True
        return config

    def for_trial(self, model: Any) -> Any:
        """The same with a small cache, for a manager whose steps run no compiled code."""
        config = self.for_manager(model)
        config.num_blocks = TRIAL_BLOCKS
        config.max_batch_tokens = TRIAL_BATCH_TOKENS
        config.use_cuda_graph = config.use_async_batching = False
        config.varlen_compile_config = config.decode_compile_config = None
        config.default_compile_level = 0
        return config

    def generation_config(self, model: Any) -> Any:
        """The generation config for one manager, which writes into it."""
        config = deepcopy(model.generation_config)
        # Each request replaces these values. A processor whose value is neutral is not made.
        config.update(do_sample=True, temperature=0.5, top_k=1, top_p=0.5)
        config.repetition_penalty = None  # added for each request
        if config.eos_token_id is None:
            config.eos_token_id = -1  # as the manager would, with a warning
        return config


def is_neutral_penalty(value: Any) -> bool:
    """Whether a repetition penalty changes nothing."""
    return value in (None, 1.0)


def check_cb_config(config: Any, *, takes_compiled: bool) -> None:
    """Refuse what cannot be the *continuous_batching_config* of any model.

    Raises:
        TypeError, ValueError
    """
    if config is None:
        return
    import transformers

    kind = getattr(transformers, "ContinuousBatchingConfig", None)
    if kind is not None and not isinstance(config, kind):
        raise TypeError(
            "continuous_batching_config must be a transformers.ContinuousBatchingConfig, "
            f"not {type(config).__name__}"
        )
    compiles = ("varlen_compile_config", "decode_compile_config", "default_compile_level")
    if not takes_compiled and any(getattr(config, name, None) for name in compiles):
        raise ValueError(
            "continuous_batching_config: with batching='auto' the batch takes turns with "
            "generate(), and compiled steps cannot; leave out its compile settings, or use "
            "batching='continuous'"
        )


def validate_cb_config(model: Any, max_running: int | None, config: Any) -> Settings:
    """What a manager for *model* is made of. *config* is transformers' own, or None.

    Raises:
        ImportError: transformers is too old, or psutil is missing.
        TypeError, ValueError: this model, or its generation config, cannot be served.
    """
    import transformers

    new_config: Any = getattr(transformers, "ContinuousBatchingConfig", None)
    if not hasattr(new_config, "page_size"):
        raise ImportError("batching='continuous' needs transformers 5.18 or newer")
    _validate_model(model)
    if model.device.type == "cpu":
        try:
            import psutil  # noqa: F401
        except ImportError as exc:
            raise ImportError(
                "batching='continuous' on a CPU needs psutil: pip install psutil"
            ) from exc
    max_running = (
        max_running or (None if config is None else config.max_requests_per_batch) or MAX_RUNNING
    )
    return Settings(max_running, config)


def _validate_model(model: Any) -> None:
    if not hasattr(model, "continuous_batching_context_manager"):
        raise TypeError(
            f"batching='continuous': {type(model).__name__} is not a model of transformers that "
            "has continuous batching; use batching='none'"
        )
    if is_encoder_decoder(model):
        raise ValueError(
            "batching='continuous': a model with an encoder has no paged cache; use batching='none'"
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "batching='continuous': a soft prompt of PEFT is lost there; use batching='none'"
        )
    for name, neutral in _IGNORED.items():
        if (value := getattr(model.generation_config, name, None)) not in neutral:
            raise ValueError(
                f"batching='continuous' ignores {name}={value!r}, which the model's generation "
                "config asks for; change that, or use batching='none'"
            )


def _sized_config(model: Any, max_running: int) -> Any:
    from transformers import ContinuousBatchingConfig

    is_cpu = model.device.type == "cpu"
    text = text_config(model)
    page = ContinuousBatchingConfig().page_size
    longest = getattr(text, "max_position_embeddings", None) or TOKENS_EACH
    each = min(longest, TOKENS_EACH_ON_CPU if is_cpu else TOKENS_EACH)
    wanted = max(longest, max_running * each)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * heads * width * model.dtype.itemsize
    affordable = free_bytes(model.device) * (MEMORY_SHARE_ON_CPU if is_cpu else MEMORY_SHARE)
    tokens = min(wanted, affordable / token_bytes)
    return ContinuousBatchingConfig(
        num_blocks=max(1, math.ceil(tokens / page)),
        max_batch_tokens=max(BATCH_TOKENS_ON_CPU if is_cpu else BATCH_TOKENS, max_running),
    )
