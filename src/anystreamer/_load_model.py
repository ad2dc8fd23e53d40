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
        OSError: there is no model of this name.
    """
    if name is None:
        from .demo import load_demo

        return load_demo()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusts_code)
    model: Any = AutoModelForCausalLM.from_pretrained(
        name, dtype="auto", trust_remote_code=trusts_code
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def shown_name(name: str | None) -> str:
    """Return the name to show for the model: of its folder, or its id on the hub."""
    if name is None:
        return EMBEDDED
    return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name
