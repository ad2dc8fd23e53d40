"""The settings of sampling that a user of the chat can change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["SETTINGS", "changed"]


def _at_least(least: float, most: float, kind: type[int] | type[float]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:  # a NaN neither
            raise ValueError
        return value

    return parsed


# What a text has to be, and what makes it a value.
SETTINGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "temperature": ("a number from 0 to 2", _at_least(0.0, 2.0, float)),
    "top_p": ("a number above 0, up to 1", _at_least(math.ulp(0.0), 1.0, float)),
    "max_tokens": ("a whole number from 1 on", _at_least(1, 2**31 - 1, int)),
}


def changed(settings: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """The settings with one more, or, if *text* is empty, without that one.

    Raises:
        ValueError: with what to write.
    """
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name!r}: use {', '.join(SETTINGS)}")
    others = {each: value for each, value in settings.items() if each != name}
    if not text:
        return others
    form, parse = SETTINGS[name]
    try:
        return others | {name: parse(text)}
    except ValueError:
        raise ValueError(f"{name} must be {form}, got {text!r}") from None
