"""Loads the model that a command runs: from a folder or from the hub."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["EMBEDDED", "load", "shown_name"]

EMBEDDED = "anystreamer-demo"


def load(name: str | None, *, trusts_code: bool) -> tuple[Any, Any]:
    """Load a model and its tokenizer, onto a GPU if there is one.

    Args:
        name: a folder or a hub id; None is the embedded model.
        trusts_code: allow to run Python code that comes with the model.

    Raises:
        ImportError: transformers or torch is not installed.
        ValueError: it is not a text model, or it comes with code and *trusts_code* is false.
        OSError: there is no model of this name, or it is not in the cache while the hub cannot be
            reached.
    """
    if name is None:
        from .demo import load_demo

        return load_demo()
    _check_folder(name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusts_code)
    except OSError as exc:
        if os.path.isdir(name) or "cache" not in str(exc):
            raise
        raise OSError(
            f"{name} is not in the cache, and the hub cannot be reached (HF_HUB_OFFLINE is set, or "
            "there is no network): download it first, or pass the folder that it is in"
        ) from exc
    model: Any = AutoModelForCausalLM.from_pretrained(
        name, dtype="auto", trust_remote_code=trusts_code
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _check_folder(name: str) -> None:
    """Refuse a path that is not the folder of a model. An id on the hub has one slash at most."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise OSError(f"{name} has no config.json: it is not the folder of a model")
    elif os.path.isabs(path) or name.startswith(".") or name.count("/") > 1:
        raise OSError(f"there is no folder {name}")


def shown_name(name: str | None) -> str:
    """Return the name to show for the model: of its folder, or its id on the hub."""
    if name is None:
        return EMBEDDED
    return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name
