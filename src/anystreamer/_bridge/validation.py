"""Checks of the arguments that all streams take."""

from __future__ import annotations

import math
from typing import TypeVar

from anyio import CapacityLimiter

__all__ = [
    "is_whole",
    "validate_buffer_size",
    "validate_limiter",
    "validate_max_items",
    "validate_name",
    "validate_seconds",
]

T = TypeVar("T")


def validate_limiter(limiter: object) -> CapacityLimiter | None:
    """Return the *limiter* argument. Raises TypeError if it is not one."""
    if limiter is None or isinstance(limiter, CapacityLimiter):
        return limiter
    raise TypeError(f"limiter must be an anyio.CapacityLimiter, not {type(limiter).__name__}")


def validate_buffer_size(max_buffer_size: float) -> float:
    """Return the *max_buffer_size* argument. Raises TypeError or ValueError if it is not one."""
    if not is_whole(max_buffer_size) and max_buffer_size != math.inf:
        raise TypeError(
            f"max_buffer_size must be a whole number or math.inf, not {max_buffer_size!r}"
        )
    if max_buffer_size < 1:
        raise ValueError(f"max_buffer_size must be at least 1, not {max_buffer_size!r}")
    return max_buffer_size


def validate_name(name: str | None) -> str:
    """Return the *name* argument, "" for None. Raises TypeError if it is not a str."""
    if name is None or isinstance(name, str):
        return name or ""
    raise TypeError(f"name must be a str, not {type(name).__name__}")


def validate_max_items(max_items: int) -> int:
    """Return the *max_items* argument. Raises TypeError or ValueError if it is not one."""
    if not is_whole(max_items):
        raise TypeError(f"max_items must be a whole number or None, not {max_items!r}")
    if max_items < 1:
        raise ValueError(f"max_items must be at least 1, not {max_items!r}")
    return max_items


def validate_seconds(name: str, seconds: float | None) -> None:
    """Raises TypeError or ValueError unless *seconds* is None, or a number of more than 0."""
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(seconds).__name__}")
    if not seconds > 0:
        raise ValueError(f"{name} must be more than 0, not {seconds!r}")
    try:
        float(seconds)
    except OverflowError:
        raise ValueError(f"{name} is too large: leave it out for no limit") from None


def is_whole(value: object) -> bool:
    """Whether a value is a whole number. A bool is not, although it is an `int` for Python."""
    return isinstance(value, int) and not isinstance(value, bool)
