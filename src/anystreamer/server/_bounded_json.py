"""JSON with bounds: how deep it is nested, and how many objects and arrays it has."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "from_bounded_json"]

# Parsing holds the interpreter's lock. What takes long are the objects and arrays: Python's garbage
# collector visits them again and again. 340,000 of them, in one megabyte, took 230 ms.
MAX_CONTAINERS = 16_384

# Templates and schemas are walked by functions that call themselves.
MAX_DEPTH = 64

# It matches at each quotation mark, also of a string without an end: if it did not, it would search
# the rest of the text for each of them.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]', re.DOTALL)


def from_bounded_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not valid, or exceeds a bound.
    """
    _check_bounds(text if isinstance(text, bytes) else text.encode())
    return from_json(text, allow_inf_nan=False)


def _check_bounds(text: bytes) -> None:
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH:  # as in most bodies
        return
    depth = containers = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in (b"{", b"["):
            depth += 1
            containers += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
            if containers > MAX_CONTAINERS:
                raise ValueError(f"it has more than {MAX_CONTAINERS} objects and arrays")
        elif bracket in (b"}", b"]"):
            depth -= 1
