"""Functions with the parameters of other functions, for type checkers and for notebooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["method_with_signature_of", "with_signature_of"]

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def with_signature_of(
    source: Callable[P, object],
) -> Callable[[Callable[..., ResultT]], Callable[P, ResultT]]:
    """Give a function the parameters of another one, for type checkers and for notebooks."""

    def decorate(function: Callable[..., ResultT]) -> Callable[P, ResultT]:
        returns = inspect.signature(function).return_annotation
        signature = inspect.signature(source).replace(return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def method_with_signature_of(
    source: Callable[Concatenate[Any, P], object],
) -> Callable[[Callable[..., ResultT]], Callable[Concatenate[Any, P], ResultT]]:
    """The same for a method: its ``self`` can be of another type."""
    return with_signature_of(source)
