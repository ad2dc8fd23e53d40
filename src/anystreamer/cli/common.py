"""What the commands share: their choices, and loading a model with helpful errors."""

from __future__ import annotations

import json
import math
import sys
import traceback
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from .._errors import logger, message_of
from .._installing import to_install
from .._loading import load_model
from .terminal import fail

__all__ = [
    "INSTALL",
    "INSTALL_SERVER",
    "KEY",
    "PROMPT",
    "Backend",
    "Batching",
    "Server",
    "finite",
    "given",
    "load_embedded",
    "load_or_fail",
    "refuse_beside",
    "refuse_empty",
    "require_installed",
]

PROMPT = "An increasing sequence: one,"
KEY = "ANYSTREAMER_API_KEY"
INSTALL = to_install("demo")
INSTALL_SERVER = to_install("demo,server")


class Backend(StrEnum):
    """The event loops that a command can run on."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


class Server(StrEnum):
    """The HTTP servers. uvicorn runs on asyncio only."""

    UVICORN = "uvicorn"
    HYPERCORN = "hypercorn"


class Batching(StrEnum):
    """How many requests the model runs at a time: see `anystreamer.open_engine`."""

    AUTO = "auto"
    NONE = "none"
    CONTINUOUS = "continuous"


def require_installed(package: str, install: str = INSTALL) -> None:
    """Exit with a message if *package*, such as ``trio``, is not installed."""
    if find_spec(package) is None:
        fail(f"{package} is not installed: {install}")


def load_embedded() -> tuple[Any, Any]:
    """Load the embedded model. It takes seconds, mostly to import torch."""
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


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line, without those that are None or false."""
    return {name: value for name, value in options.items() if value}


def load_or_fail(name: str | None, **options: Any) -> tuple[Any, Any]:
    """Load a model of transformers, or the embedded one. *options* are those of `load_model`."""
    if name is None and not options:
        return load_embedded()
    try:
        return load_model(name, **options)
    except ImportError as exc:
        fail(f"{exc}{'' if 'pip install' in str(exc) else f': {INSTALL}'}")
    except json.JSONDecodeError as exc:
        fail(f"{name} has a file that is not valid JSON ({exc})")
    except ValueError as exc:
        needs_trust = "trust_remote_code" in str(exc) and "trust_remote_code" not in options
        fail(f"{exc}{' (here: --trust-remote-code)' if needs_trust else ''}")
    except OSError:
        raise  # `main` shows it
    except Exception as exc:  # a damaged file, too little memory: each library has its own errors
        logger.debug("%s", "".join(traceback.format_exception(exc)))
        fail(f"{name} cannot be loaded: {type(exc).__name__}: {message_of(exc)}")


def finite(value: float) -> float:
    """Check a number of seconds, as a callback of an option: no minimum refuses a NaN."""
    import typer

    if not math.isfinite(value):
        raise typer.BadParameter("must be a finite number")
    return value


def refuse_empty(context: Any, *allowed: str) -> None:
    """Exit with a message if a text is empty, as if it was a shell's variable that is not set.

    Args:
        context: typer's, of the command.
        allowed: names of parameters whose text can be empty.
    """
    import typer

    for parameter in context.command.params:
        value = context.params.get(parameter.name)
        texts = value if isinstance(value, list) else [value]
        if "" in texts and parameter.name not in allowed:
            raise typer.BadParameter(
                "is empty: leave it out, or check that the shell variable is set",
                ctx=context,
                param=parameter,
            )


def refuse_beside(context: Any, option: str, *names: str) -> None:
    """Exit with a message if an option was given that has no effect together with *option*.

    Args:
        context: typer's, of the command.
        option: as it is written in the command.
        names: of the parameters without an effect.
    """
    import typer

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"has no effect with {option}: leave one of them out", ctx=context, param=parameter
            )
