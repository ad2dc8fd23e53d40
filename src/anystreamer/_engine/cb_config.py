"""The manager of continuous batching: its cache made to measure, and what it tells of itself."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from time import sleep
from typing import Any, cast

__all__ = ["Settings", "validate_cb_config"]

# How many requests run at once if nobody says.
MAX_RUNNING = 64

# What the cache is made for if nobody says: so many tokens for each request that runs, or one
# request of the model's full length if that is more. Where attention has no kernel for pages it
# reads through a mask as wide as the cache, so on a CPU that is kept smaller.
TOKENS_EACH = 2048
TOKENS_EACH_ON_CPU = 512

# So many tokens of prompts, and of texts, go into one step; for the same reason.
BATCH_TOKENS = 2048
BATCH_TOKENS_ON_CPU = 256

# The share of the free memory that the cache may take.
MEMORY_SHARE = 0.8
MEMORY_SHARE_ON_CPU = 0.3

# What the manager would leave out with a warning, and its neutral values.
_LEFT_OUT: dict[str, tuple[Any, ...]] = {
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
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "suppress_tokens": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}

# How long a manager that dies may take to say of what (seconds).
DEATH_POLL = 0.1


def validate_cb_config(model: Any, max_running: int | None, config: Any) -> Settings:
    """What a manager for *model* is made of. *config* is transformers' own, or None.

    Raises:
        ImportError: transformers is too old, or psutil is missing.
        TypeError, ValueError: this model, or its generation config, is not for it.
    """
    import transformers

    new_config: Any = getattr(transformers, "ContinuousBatchingConfig", None)
    if not hasattr(new_config, "page_size"):
        raise ImportError("batching='continuous' needs transformers 5.17 or newer")
    if not hasattr(model, "continuous_batching_context_manager"):
        raise TypeError(
            f"batching='continuous': {type(model).__name__} is no model of transformers that has "
            "continuous batching; use batching='none'"
        )
    if model.config.is_encoder_decoder:
        raise ValueError(
            "batching='continuous': a model with an encoder has no paged cache; use batching='none'"
        )
    for name, neutral in _LEFT_OUT.items():
        if (value := getattr(model.generation_config, name, None)) not in neutral:
            raise ValueError(
                f"batching='continuous' leaves out {name}={value!r}, which the model's generation "
                "config asks for; change that, or use batching='none'"
            )
    if config is not None and not isinstance(config, new_config):
        raise TypeError(
            "continuous_batching_config must be a transformers.ContinuousBatchingConfig, "
            f"not {type(config).__name__}"
        )
    if model.device.type == "cpu":
        try:
            import psutil  # type: ignore[import-untyped]  # noqa: F401
        except ImportError as exc:
            raise ImportError(
                "batching='continuous' on a CPU needs psutil: pip install psutil"
            ) from exc
    max_running = (
        max_running or (None if config is None else config.max_requests_per_batch) or MAX_RUNNING
    )
    if config is None:
        config = _sized_cache_config(model, max_running, new_config)
    return Settings(max_running=max_running, config=config)


def _sized_cache_config(model: Any, max_running: int, new_config: Any) -> Any:
    is_cpu = model.device.type == "cpu"
    text = model.config.get_text_config()
    page = new_config().page_size
    longest = getattr(text, "max_position_embeddings", None) or TOKENS_EACH
    each = min(longest, TOKENS_EACH_ON_CPU if is_cpu else TOKENS_EACH)
    wanted = max(longest, max_running * each)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * heads * width * model.dtype.itemsize
    affordable = _free_bytes(model.device) * (MEMORY_SHARE_ON_CPU if is_cpu else MEMORY_SHARE)
    tokens = min(wanted, affordable / token_bytes)
    return new_config(
        num_blocks=max(1, math.ceil(tokens / page)),
        max_batch_tokens=max(BATCH_TOKENS_ON_CPU if is_cpu else BATCH_TOKENS, max_running),
    )


def _free_bytes(device: Any) -> float:
    import torch

    if device.type == "cpu":
        import psutil

        return float(psutil.virtual_memory().available)
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return float(module.mem_get_info(device)[0])
    return math.inf  # the manager looks for itself


def _whole_pages(cache: Any) -> int:
    """How many pages one request can have, in each kind of attention of the model.

    The cache is dealt out in sectors, each to one kind.
    """
    pages = int(cache.num_blocks)
    kinds = getattr(cache, "cache_allocators", None)
    if not kinds or not hasattr(cache, "num_sectors"):
        return pages
    in_sector = [getattr(kind, "blocks_per_sector", 1) for kind in kinds.values()]
    while pages and sum(math.ceil(pages / each) for each in in_sector) > cache.num_sectors:
        pages -= 1
    return pages


@dataclass(frozen=True, slots=True)
class Settings:
    """What a manager is made of, and how to read it."""

    max_running: int
    config: Any  # transformers' ContinuousBatchingConfig

    def for_manager(self, *, sampling: bool) -> Any:
        """The config for one manager, which writes into it."""
        config = deepcopy(self.config)
        config.max_requests_per_batch = self.max_running
        config.max_queue_size = (
            0  # no end: the engine's own line is before it, and a full one blocks
        )
        config.per_request_processors |= sampling
        return config

    def pages(self, manager: Any) -> tuple[int, int]:
        """How many pages the manager's cache has, and the tokens of each; once it has been made.

        Raises:
            BaseException: what the manager's thread died of instead.
        """
        while manager.batch_processor is None:
            if not manager.is_running():
                raise self.cause_of_death(manager)
            sleep(0.001)
        config = manager.continuous_batching_config
        return _whole_pages(manager.batch_processor.cache), int(config.page_size)

    def cache_used(self, manager: Any) -> float | None:
        """The share of the cache that is in use; None where that cannot be told."""
        try:
            free = manager.batch_processor.cache.compute_free_capacity(relative=True)
        except AttributeError:
            return None
        return 1.0 - float(free)

    def is_dying(self, manager: Any) -> bool:
        """Whether a request failed because the manager's thread ends, which it does after that."""
        return not manager.is_running() or bool(manager.background_thread_status.local_status)

    def cause_of_death(self, manager: Any) -> BaseException:
        """What the manager's thread died of."""
        for _ in range(int(DEATH_POLL / 0.001)):  # it tells its requests first
            if (cause := manager.background_thread_status.fatal_error) is not None:
                return cast("BaseException", cause)
            sleep(0.001)
        return RuntimeError("the manager's thread has ended")
