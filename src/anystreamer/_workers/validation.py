"""The check of arguments that count threads, streams or tokens."""

from __future__ import annotations

from .._bridge import is_whole

__all__ = ["validate_count"]


def validate_count(name: str, number: int | None, least: int) -> None:
    """Raises TypeError or ValueError unless *number* is None, or a whole number from *least* on."""
    if number is None:
        return
    if not is_whole(number):
        raise TypeError(f"{name} must be a whole number, not {number!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
