"""The arguments for ``generate()``: reading its settings, refusing what cannot be streamed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = [
    "check_cancel_within",
    "check_generate_kwargs",
    "check_model",
    "is_assisted",
    "max_context_length",
    "new_token_limit",
    "setting",
    "uses_torch",
]

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


def uses_torch(model: Any) -> bool:
    """Whether a model takes tensors; see `SupportsGenerate`."""
    return bool(getattr(model, "uses_torch", True))


def setting(model: Any, generate_kwargs: Mapping[str, Any], name: str) -> Any:
    """What ``generate()`` will use: an argument, else the config passed, else the model's own."""
    configs = (generate_kwargs.get("generation_config"), getattr(model, "generation_config", None))
    values = (generate_kwargs.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)


def is_assisted(model: Any, generate_kwargs: Mapping[str, Any]) -> bool:
    """Whether drafts are made and checked several tokens at a time."""
    return any(setting(model, generate_kwargs, name) for name in _ASSISTED)


def new_token_limit(model: Any, generate_kwargs: Mapping[str, Any], prompt_length: int) -> float:
    """How many tokens ``generate()`` makes at the most, for a prompt of that many of them."""
    new = setting(model, generate_kwargs, "max_new_tokens")
    if new is not None:
        return int(new)
    total = setting(model, generate_kwargs, "max_length")
    if total is None and not uses_torch(model):
        return math.inf
    if total is None:  # transformers' default
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or math.inf
        return float(min(20, limit - prompt_length))
    if prompt_length == 0 and "inputs_embeds" in generate_kwargs:
        prompt_length = generate_kwargs["inputs_embeds"].shape[1]
    return int(total) - prompt_length


def max_context_length(model: Any) -> int | None:
    """How many tokens a model says that it takes, prompt and answer together."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def check_model(name: str, model: Any) -> None:
    """Refuse a model that cannot stream. *name* is that of the public function.

    Raises:
        ImportError: transformers or torch is not installed.
        TypeError, ValueError: the model has no ``generate()``, is in training mode, or is one of
            several ranks.
    """
    if uses_torch(model):
        try:
            import torch
            import transformers  # noqa: F401
        except ImportError as exc:
            raise ImportError(
                f"{name}() needs transformers and torch: pip install 'anystreamer[transformers]'"
            ) from exc
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = torch.distributed.get_world_size()
            if ranks > 1:
                raise ValueError(
                    f"torch.distributed runs {ranks} ranks; one that stops alone hangs the others: "
                    "stream from a server of one process per model instead"
                )
    if not callable(getattr(model, "generate", None)):
        raise TypeError(
            f"model must have generate(), and {type(model).__name__} has none: "
            "load it with AutoModelForCausalLM or another class for generation"
        )
    if getattr(model, "training", False):
        raise ValueError(
            "model is in training mode and would generate with dropout: call model.eval()"
        )


def check_generate_kwargs(
    name: str, model: Any, generate_kwargs: Mapping[str, Any], *, logprobs: bool
) -> None:
    """Refuse what ``generate()`` would accept, or refuse too late, and cannot stream."""
    if "streamer" in generate_kwargs:
        raise TypeError(f"streamer= is what {name}() passes: iterate over the stream instead")
    for alias in ("max_tokens", "max_completion_tokens"):
        if alias in generate_kwargs:
            raise TypeError(f"{alias}= is not an argument of generate(): use max_new_tokens=")
    if callable(generate_kwargs.get("custom_generate")):
        raise ValueError(
            "custom_generate= as a callable drops the streamer: "
            f"call it from stream_from_thread() instead of {name}()"
        )
    if generate_kwargs.get("synced_gpus"):
        raise ValueError(
            "synced_gpus= is for several ranks; one that stops alone hangs the others: "
            "stream from a server of one process per model instead"
        )
    if _cache(model, generate_kwargs).startswith("paged"):
        raise ValueError(
            "cache_implementation='paged' cannot be streamed: leave it out, or use another cache"
        )
    beams = setting(model, generate_kwargs, "num_beams") or 1
    if beams > 1:
        raise ValueError(
            f"num_beams={beams}: beam search has no text before its end; use num_beams=1"
        )
    rows = setting(model, generate_kwargs, "num_return_sequences") or 1
    if rows > 1 and name == "stream_text":
        raise ValueError(
            f"num_return_sequences={rows}: stream_text() streams one sequence; use stream_batch()"
        )
    if logprobs and is_assisted(model, generate_kwargs):
        raise ValueError(
            "logprobs=True: assisted decoding asks for more scores than it makes tokens; "
            "leave out assistant_model= and prompt_lookup_num_tokens="
        )
    if logprobs and not uses_torch(model):
        raise ValueError("logprobs=True needs a model of transformers")


def check_cancel_within(
    model: Any, generate_kwargs: Mapping[str, Any], cancel_within: object
) -> None:
    """Refuse a *cancel_within* that is none, or that these arguments and this model do not allow.

    Raises:
        ValueError: the reason, and what to do instead.
    """
    if cancel_within == "step":
        return
    if cancel_within != "layer":
        raise ValueError(f"cancel_within must be 'step' or 'layer', not {cancel_within!r}")
    reason = ""
    if not uses_torch(model) or not hasattr(model, "modules"):
        reason = f"{type(model).__name__} is no model of transformers, and has no layers"
    elif any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    ):
        reason = "a compiled model does not run what asks between its layers"
    elif generate_kwargs.get("past_key_values") is not None:
        reason = "a step that is cut leaves past_key_values= with a part of its layers"
    elif not setting(model, generate_kwargs, "disable_compile") and (
        setting(model, generate_kwargs, "compile_config") is not None
        or _cache(model, generate_kwargs) not in _NEVER_COMPILED
    ):
        reason = "generate() compiles a model with this cache, unless disable_compile=True"
    if reason:
        raise ValueError(f"cancel_within='layer': {reason}; use cancel_within='step'")


# Caches of generate() whose size changes, so that it does not compile.
_NEVER_COMPILED = ("", "dynamic", "offloaded", "quantized")


def _cache(model: Any, generate_kwargs: Mapping[str, Any]) -> str:
    return str(setting(model, generate_kwargs, "cache_implementation") or "")
