"""`open_engine`: a model that many tasks use at once, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from .._generation import SupportsGenerate
from .._kept_caches import ReuseCache, validate_reuse_cache
from .._model import check_model
from .._prompts import tokenizer_of
from .._text import SupportsDecode
from .._workers import OwnerContext, validate_count
from .base import BaseEngine, Engine, warn_of_one_by_one
from .sequential import SequentialEngine

__all__ = ["EngineContext", "open_engine"]


def open_engine(
    model: SupportsGenerate,
    tokenizer: SupportsDecode,
    *,
    batching: Literal["none", "continuous", "auto"] = "none",
    max_waiting: int | None = None,
    max_running: int | None = None,
    continuous_batching_config: Any = None,
    context_length: int | None = None,
    reuse_cache: bool | ReuseCache = True,
) -> EngineContext:
    """Own a model for a whole application, and serve many requests on it.

    Use it as ``async with open_engine(model, tokenizer) as engine:`` around all code that uses it,
    and ``async with engine.stream_text(prompt) as stream:`` for each request. Leaving the block
    ends the streams that are open, with `EngineClosed`, and waits for the engine's thread.

    Args:
        model: a generation model of transformers, in evaluation mode.
        tokenizer: its tokenizer, or a processor that has one.
        batching: ``"none"`` runs one request after the other, each as `stream_text` would, all in
            one thread. ``"continuous"`` runs many at once, with transformers' continuous batching:
            more tokens per second, but fewer arguments of ``generate()``, and fewer models.
            ``"auto"`` does both: requests that continuous batching supports run at once, and all
            others one by one beside them. If it does not work with the model, all requests run one
            by one.
        max_waiting: how many requests can wait for their turn; one more raises `EngineBusy`.
            Unlimited by default.
        max_running: how many requests run at once, with continuous batching; 64 by default. With
            ``"auto"`` one more runs beside them.
        continuous_batching_config: transformers' own ``ContinuousBatchingConfig``, in place of one
            whose cache has a suitable size.
        context_length: token limit of prompt and answer together. None reads it from the model's
            config. A longer prompt raises ValueError when its block is entered.
        reuse_cache: whether to keep the KV caches of recent conversations, so that the next turn of
            a conversation computes only its new tokens; `ReuseCache` sets limits. A request that
            cannot use a kept cache runs without one. Continuous batching has a cache of its own,
            which *continuous_batching_config* describes.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work; and when the block is
            entered, if ``"continuous"`` gives wrong answers with this model. Two short prompts are
            tested then: together, and each by ``generate()``.
        ImportError: transformers is not installed, or too old for ``"continuous"``.
    """
    if batching not in ("none", "continuous", "auto"):
        raise ValueError(f"batching must be 'auto', 'none' or 'continuous', not {batching!r}")
    for name, number, minimum in (
        ("max_waiting", max_waiting, 0),
        ("max_running", max_running, 1),
        ("context_length", context_length, 1),
    ):
        validate_count(name, number, minimum)
    limits = validate_reuse_cache(reuse_cache)
    check_model("open_engine", model)
    tokenizer_of(tokenizer)
    if batching == "continuous" and reuse_cache is not True:
        raise ValueError(
            "reuse_cache= needs batching='none' or 'auto': continuous batching itself shares the "
            "cache of equal beginnings; continuous_batching_config with allow_block_sharing=False "
            "turns this off"
        )
    if batching != "none":
        kind = _batching_engine(batching, model, max_running, continuous_batching_config, limits)
        if kind is not None:
            return EngineContext(lambda: kind(model, tokenizer, max_waiting, context_length))
    elif max_running not in (None, 1) or continuous_batching_config is not None:
        raise ValueError(
            "max_running= and continuous_batching_config= need batching='continuous' or 'auto': "
            "without it one request runs at a time"
        )
    return EngineContext(
        lambda: SequentialEngine(model, tokenizer, max_waiting, context_length, limits)
    )


def _batching_engine(
    batching: str, model: Any, max_running: int | None, config: Any, limits: Any
) -> Callable[..., BaseEngine] | None:
    """What makes an engine with continuous batching; None where ``"auto"`` does without.

    Raises:
        TypeError, ValueError, ImportError: see `open_engine`.
    """
    from .cb_config import check_cb_config, validate_cb_config

    check_cb_config(config, takes_compiled=batching == "continuous")
    try:
        settings = validate_cb_config(model, max_running, config)
    except (TypeError, ValueError, ImportError) as exc:
        if batching == "continuous":
            raise
        # A TypeError says that it is not a model of transformers: that is not worth a warning.
        if not isinstance(exc, TypeError):
            warn_of_one_by_one(exc)
        return None
    if batching == "continuous":
        from .continuous import ContinuousBatchingEngine

        return partial(ContinuousBatchingEngine, settings=settings)
    from .auto import AutoEngine

    return partial(AutoEngine, settings=settings, reuse_cache=limits)


class EngineContext(OwnerContext[BaseEngine, Engine]):
    """The ``async with`` block that owns an engine."""

    _name = "open_engine"

    def _show(self, owner: BaseEngine) -> Engine:
        return owner
