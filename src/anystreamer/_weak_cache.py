"""Values that are kept for objects, hashable or not, for as long as these live."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import TypeVar

__all__ = ["weak_cached"]

T = TypeVar("T")


def weak_cached(owner: object, kept: dict[int, T], new: Callable[[], T]) -> T:
    """The value in *kept* for an object, made by *new* if there is none."""
    key = id(owner)
    if key not in kept:
        kept[key] = new()
        with contextlib.suppress(TypeError):  # without weak references it stays
            weakref.finalize(owner, kept.pop, key, None)
    return kept[key]
