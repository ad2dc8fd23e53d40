"""What is read from transformers' manager of continuous batching, and from the model it serves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import sleep
from typing import Any, cast

__all__ = [
    "Attention",
    "attention_of",
    "cache_size",
    "cache_used",
    "cause_of_death",
    "configs_of",
    "is_compiled",
    "is_dying",
    "runs_in_order",
    "runs_python",
    "take_results",
    "use_attention",
    "use_simple_queue",
]

# How long to wait for the reason why a manager's thread has died (seconds).
DEATH_POLL = 0.1

# transformers has no public name for it. Of one config, without those within it.
ATTENTION = "_attn_implementation_internal"

#: The implementation of attention that each of a model's configs names.
Attention = Mapping[str, Any]


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


def use_simple_queue(manager: Any) -> None:
    """Exchange the queue of a manager's results, before it starts.

    The lock of Python's `queue.Queue` is taken for each token, in the manager's thread and in ours.
    Where the two meet, the manager's waits for it, and then for the interpreter. A `SimpleQueue`
    needs none.
    """
    _with_results(manager).output_queue = SimpleQueue[Any]()


def take_results(manager: Any, timeout: float) -> list[Any]:
    """Wait for a result. Returns all that are ready; none after *timeout* seconds."""
    first = manager.get_result(timeout=timeout)
    if first is None:
        return []
    results = [first]
    take = _with_results(manager).output_queue.get_nowait
    with suppress(Empty):
        while True:
            results.append(take())
    return results


def _with_results(manager: Any) -> Any:
    """What has the ``output_queue``; in older releases the manager itself."""
    return getattr(manager, "output_router", manager)


def runs_python(manager: Any) -> bool:
    """Whether each of its steps runs the model's Python code: no CUDA graph, nothing compiled."""
    has_graphs = any(manager.continuous_batching_config.cuda_graph_booleans)
    return not has_graphs and not is_compiled(manager)


def runs_in_order(manager: Any) -> bool:
    """Whether code of ours can take part in each of its steps, for the requests that are in it.

    Asynchronous batching prepares a step before the tokens of the last one are known, and a
    recorded step would do again what was done when it was recorded.
    """
    return runs_python(manager) and not manager.continuous_batching_config.use_async_batching


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


def attention_of(model: Any) -> Attention:
    """The implementations of attention that a model uses, by the config of each of its parts."""
    found = {name: getattr(config, ATTENTION) for name, config in configs_of(model).items()}
    return {name: value for name, value in found.items() if value is not None}


def configs_of(model: Any) -> Mapping[str, Any]:
    """The configs of a model's parts that name an implementation of attention."""
    found: dict[str, Any] = {}
    _add_configs("", model.config, found)
    for name, module in model.named_modules():  # some are in no config of another part
        _add_configs(f"of {name}", getattr(module, "config", None), found)
    return found


def _add_configs(name: str, config: Any, found: dict[str, Any]) -> None:
    if not hasattr(config, ATTENTION) or any(config is each for each in found.values()):
        return
    found[name] = config
    for part in getattr(config, "sub_configs", ()):
        _add_configs(f"{name}.{part}" if name else part, getattr(config, part, None), found)


@contextmanager
def use_attention(configs: Mapping[str, Any], attention: Attention) -> Iterator[None]:
    """Use these implementations of attention within the block; after it, those before.

    All of them have been set by ``set_attn_implementation`` before, which checks and loads them.
    """
    before = {name: getattr(configs[name], ATTENTION) for name in attention}
    _set_attention(configs, attention)
    try:
        yield
    finally:
        _set_attention(configs, before)


def _set_attention(configs: Mapping[str, Any], attention: Attention) -> None:
    for name, value in attention.items():
        if getattr(configs[name], ATTENTION) != value:
            setattr(configs[name], ATTENTION, value)
