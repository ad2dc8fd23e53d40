"""What is read from transformers' manager of continuous batching, and from the model it serves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any, cast

__all__ = [
    "attention_of",
    "cache_size",
    "cache_used",
    "cause_of_death",
    "is_compiled",
    "is_dying",
    "runs_python",
    "use_attention",
]

# How long to wait for the reason why a manager's thread has died (seconds).
DEATH_POLL = 0.1

# transformers has no public name for it.
ATTENTION = "_attn_implementation"


def cache_size(manager: Any) -> tuple[int, int]:
    """How many pages the cache has for one request, and the tokens of each. Waits for the cache.

    Raises:
        BaseException: what the manager's thread died of instead.
    """
    while manager.batch_processor is None:
        if not manager.is_running():
            raise cause_of_death(manager)
        sleep(0.001)
    return whole_pages(manager.batch_processor.cache), manager.continuous_batching_config.page_size


def whole_pages(cache: Any) -> int:
    """How many pages one request can have, in each kind of attention of the model.

    The cache is divided into sectors, and each of them belongs to one kind.
    """
    pages = int(cache.num_blocks)
    kinds = getattr(cache, "cache_allocators", None)
    if not kinds or not hasattr(cache, "num_sectors"):
        return pages
    in_sector = [getattr(kind, "blocks_per_sector", 1) for kind in kinds.values()]
    while pages and sum(math.ceil(pages / each) for each in in_sector) > cache.num_sectors:
        pages -= 1
    return pages


def cache_used(manager: Any) -> float | None:
    """The share of the cache that is in use; None where it is not known."""
    try:
        free = manager.batch_processor.cache.compute_free_capacity(relative=True)
    except AttributeError:
        return None
    return 1.0 - float(free)


def runs_python(manager: Any) -> bool:
    """Whether each of its steps runs the model's Python code: no CUDA graph, nothing compiled."""
    has_graphs = any(manager.continuous_batching_config.cuda_graph_booleans)
    return not has_graphs and not is_compiled(manager)


def is_compiled(manager: Any) -> bool:
    """Whether torch compiles its steps."""
    config = manager.continuous_batching_config
    return config.varlen_compile_config is not None or config.decode_compile_config is not None


def is_dying(manager: Any) -> bool:
    """Whether a request failed because the manager's thread ends, which it does after that."""
    return not manager.is_running() or bool(manager.background_thread_status.local_status)


def cause_of_death(manager: Any) -> BaseException:
    """What the manager's thread died of."""
    for _ in range(int(DEATH_POLL / 0.001)):  # its requests fail before it is known
        if (cause := manager.background_thread_status.fatal_error) is not None:
            return cast("BaseException", cause)
        sleep(0.001)
    return RuntimeError("the manager's thread has ended")


def attention_of(model: Any) -> dict[str, Any]:
    """The names of a model's implementations of attention, by the config of each of its parts."""
    config = model.config
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", ())}
    found = {"": getattr(config, ATTENTION)}
    found.update({name: getattr(part, ATTENTION) for name, part in parts.items() if part})
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def use_attention(model: Any, implementations: dict[str, Any]) -> Iterator[None]:
    """Use these implementations of attention within the block; after it, those before."""
    before = attention_of(model)
    _set_attention(model, implementations)
    try:
        yield
    finally:
        _set_attention(model, before)


def _set_attention(model: Any, implementations: dict[str, Any]) -> None:
    if not implementations.items() <= attention_of(model).items():
        model.set_attn_implementation(implementations)
