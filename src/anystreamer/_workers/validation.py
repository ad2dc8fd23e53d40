"""The check of arguments that count threads, streams or tokens."""

from __future__ import annotations

from .._bridge import is_whole

__all__ = ["validate_count"]


def validate_count(name: str, number: int | None, minimum: int) -> None:
    """Raises TypeError or ValueError unless *number* is None, or an integer >= *minimum*."""
    if number is None:
        return
    if not is_whole(number):
        raise TypeError(f"{name} must be a whole number, not {number!r}")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {number}")
