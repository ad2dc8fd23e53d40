"""Checks of a model: whether it can stream, and what its config says."""

from __future__ import annotations

import inspect
from typing import Any

from ._installing import to_install

__all__ = [
    "check_model",
    "is_compiled",
    "is_encoder_decoder",
    "is_transducer",
    "main_input_name",
    "max_context_length",
    "room_for_answer",
    "takes_token_type_ids",
    "text_config",
    "uses_torch",
]


def uses_torch(model: Any) -> bool:
    """Whether a model takes tensors; see `SupportsGenerate`."""
    return bool(getattr(model, "uses_torch", True))


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model reads the prompt with an encoder and writes the answer with a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def is_transducer(model: Any) -> bool:
    """Whether a model walks over the frames of a recording (RNN-T, TDT), and ends with them."""
    return hasattr(getattr(model, "config", None), "max_symbols_per_step")


def is_compiled(module: Any) -> bool:
    """Whether torch compiles the forward pass of a model, or of a part of it."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def main_input_name(model: Any) -> str:
    """The name of the input that has a row for each answer: ids, or pixels, or audio."""
    return str(getattr(model, "main_input_name", "input_ids"))


def takes_token_type_ids(model: Any) -> bool:
    """Whether ``generate()`` takes ``token_type_ids``, which many tokenizers make of any text.

    It refuses them where neither the model nor the preparation of its inputs names them.
    """
    functions = (
        getattr(model, name, None) for name in ("prepare_inputs_for_generation", "forward")
    )
    known = [inspect.signature(each).parameters for each in functions if callable(each)]
    return not known or any("token_type_ids" in names for names in known)


def text_config(model: Any) -> Any:
    """The config of the part of a model that makes text; None if the model has no config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def max_context_length(model: Any) -> int | None:
    """How many tokens a model takes, prompt and answer together, or None: no limit is known."""
    length = getattr(text_config(model), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def room_for_answer(model: Any, prompt_tokens: int, context_length: int) -> int:
    """How many tokens of a context are left for an answer; 0 or less: none.

    The answer of an encoder-decoder has a context of its own.
    """
    return context_length - (0 if is_encoder_decoder(model) else prompt_tokens)


def check_model(name: str, model: Any) -> None:
    """Refuse a model that cannot stream. *name* is the public function's.

    Raises:
        ImportError: transformers or torch is not installed.
        TypeError, ValueError: the model has no ``generate()``, is in training mode, or is one of
            several ranks.
    """
    if uses_torch(model):
        _check_torch(name)
    if not callable(getattr(model, "generate", None)):
        raise TypeError(
            f"model must have generate(), and {type(model).__name__} has none: "
            "load it with AutoModelForCausalLM or another class for generation"
        )
    if "text" not in getattr(model, "output_modalities", ("text",)):
        raise ValueError(
            f"{type(model).__name__} generates {' and '.join(model.output_modalities)}, and "
            f"{name}() streams text: call its generate() from stream_from_thread() instead"
        )
    if getattr(model, "training", False):
        raise ValueError(
            "model is in training mode and would generate with dropout: call model.eval()"
        )


def _check_torch(name: str) -> None:
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as exc:
        raise ImportError(
            f"{name}() needs transformers and torch: {to_install('transformers')}"
        ) from exc
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    ranks = torch.distributed.get_world_size()
    if ranks > 1:
        raise ValueError(
            f"torch.distributed runs {ranks} ranks, and one rank that stops alone hangs the "
            "others: stream from a server with one process for each model instead"
        )
