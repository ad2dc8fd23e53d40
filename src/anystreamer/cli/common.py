"""What the commands share: their choices, and loading a model with helpful errors."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from .._load_model import load
from .terminal import fail

__all__ = [
    "INSTALL",
    "INSTALL_SERVER",
    "KEY",
    "PROMPT",
    "Backend",
    "Batching",
    "Server",
    "load_embedded",
    "load_model",
    "require_installed",
]

PROMPT = "An increasing sequence: one,"
KEY = "ANYSTREAMER_API_KEY"
INSTALL = "pip install 'anystreamer[demo]'"
INSTALL_SERVER = "pip install 'anystreamer[demo,server]'"


class Backend(StrEnum):
    """The event loops that a command can run on."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


class Server(StrEnum):
    """The HTTP servers. uvicorn runs on asyncio only."""

    UVICORN = "uvicorn"
    HYPERCORN = "hypercorn"


class Batching(StrEnum):
    """How many requests the model runs at a time."""

    NONE = "none"
    CONTINUOUS = "continuous"


def require_installed(package: str, install: str = INSTALL) -> None:
    """Exit with a message if *package* is not installed. ``asyncio`` always is."""
    if find_spec(package) is None:
        fail(f"{package} is not installed: {install}")


def load_embedded() -> tuple[Any, Any]:
    """Load the embedded model. It takes seconds, nearly all of them for importing torch."""
    from ..demo import load_demo

    notice = "Loading the model ..." if sys.stderr and sys.stderr.isatty() else ""
    if notice:
        print(notice, end="", file=sys.stderr, flush=True)
    model: Any
    try:
        try:
            model, tokenizer = load_demo()
            # The first generation of a process is slower than the others.
            model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=1)
            return model, tokenizer
        finally:
            if notice:
                print("\r" + " " * len(notice), end="\r", file=sys.stderr, flush=True)
    except ImportError as exc:
        fail(f"the demo needs transformers and torch ({exc.__cause__ or exc}): {INSTALL}")


def load_model(name: str | None, trusts_code: bool) -> tuple[Any, Any]:
    """Load a model of transformers, or the embedded one. *trusts_code*: it can run its own code."""
    if name is None:
        return load_embedded()
    try:
        return load(name, trusts_code=trusts_code)
    except ImportError as exc:
        fail(f"models need transformers and torch ({exc}): {INSTALL}")
    except ValueError as exc:
        needs_trust = "trust_remote_code" in str(exc) and not trusts_code
        fail(f"{exc}{' (here: --trust-remote-code)' if needs_trust else ''}")
