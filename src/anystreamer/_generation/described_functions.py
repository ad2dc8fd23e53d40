"""Python functions among the tools of a request, as JSON schemas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["described"]


def described(tools: Iterable[Any]) -> list[Any]:
    """The tools, with transformers' description in place of each function.

    Raises:
        ValueError: a function has no types, or no docstring.
        ImportError: transformers is not installed.
    """
    return [_describe(each) if callable(each) else each for each in tools]


def _describe(function: Any) -> Any:
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        return get_json_schema(function)
    except Exception as exc:  # of classes of its own
        raise ValueError(
            f"tools: {getattr(function, '__name__', function)!r} cannot be described: {exc}; pass "
            "its JSON schema"
        ) from exc
