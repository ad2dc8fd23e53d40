"""Checks functions that a caller passes, to be called in a thread, and names them in messages."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from types import AsyncGeneratorType, GeneratorType, MethodType
from typing import Any

__all__ = ["check_result", "close_unstarted", "name_of", "unblocking_kind", "validate_callback"]

_KINDS: tuple[tuple[Callable[[object], bool], str], ...] = (
    (inspect.iscoroutinefunction, "an async function"),
    (inspect.isasyncgenfunction, "an async generator function"),
    (inspect.isgeneratorfunction, "a generator function"),
)

# Results whose work has not started when they are returned. The most specific kinds come first.
_UNSTARTED: tuple[tuple[type[Any], str], ...] = (
    (GeneratorType, "a generator"),
    (AsyncGeneratorType, "an async generator"),
    (Coroutine, "a coroutine"),
    (Awaitable, "an awaitable"),
    (AsyncIterator, "an async iterator"),
    (map, "a map object"),
    (filter, "a filter object"),
)


def name_of(function: object) -> str:
    """Return what to call a function in messages: its qualified name, or its type's."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) and name else type(function).__qualname__


def unblocking_kind(function: Callable[..., object]) -> str:
    """Return the kind of a function that only makes a coroutine or a generator; "" for others."""
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    for is_kind, kind in _KINDS:
        # Of an object, Python calls the method of its type.
        if is_kind(function) or is_kind(type(function).__call__):
            return kind
    return ""


def validate_callback(callback: object, argument: str = "callback") -> None:
    """Check that a function does its work when it is called. Raises TypeError if it does not."""
    if not callable(callback):
        raise TypeError(f"{argument} must be a callable, not {type(callback).__name__}")
    if kind := unblocking_kind(callback):
        raise TypeError(f"{argument} must be a plain function, but {name_of(callback)} is {kind}")


def check_result(result: object, name: str) -> None:
    """Check that a function has done its work, by what it has returned.

    A refused coroutine is closed, so that Python does not warn that it was never awaited.

    Args:
        result: what it returned.
        name: of the function, for the message.

    Raises:
        TypeError: it still has to be awaited or iterated.
    """
    kind = type(result)  # an object can refuse isinstance(), which asks for its `__class__`
    if hasattr(kind, "add_done_callback"):  # a task or a future: it goes on by itself
        return
    for unstarted, shown in _UNSTARTED:
        if issubclass(kind, unstarted):
            close_unstarted(result)
            raise TypeError(
                f"{name} must do its work when it is called, but it returned {shown} "
                f"({kind.__qualname__})"
            )


def close_unstarted(result: object) -> None:
    """Close a coroutine or a generator that is not going to be used."""
    if issubclass(type(result), (Coroutine, Generator)):
        with suppress(Exception):
            result.close()  # type: ignore[attr-defined]
