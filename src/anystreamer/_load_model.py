"""The model that a command is started with: one of transformers, from a folder or the hub."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["EMBEDDED", "load", "shown_name"]

EMBEDDED = "anystreamer-demo"


def load(name: str | None, *, trusts_code: bool) -> tuple[Any, Any]:
    """Load a model and its tokenizer, onto a GPU if there is one.

    Args:
        name: a folder or a hub id; None is the embedded model.
        trusts_code: run Python code that the model brings.

    Raises:
        ImportError: transformers or torch is not installed.
        ValueError: it is no model of text, or needs to be trusted.
        OSError: there is none.
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
    """What people know the model by: its folder's name, or its id on the hub."""
    if name is None:
        return EMBEDDED
    return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name
