"""The sampling settings that a user of the chat can change. The chat page has the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SETTINGS", "Setting", "changed"]


@dataclass(frozen=True)
class Setting:
    """A number, and how it is limited. Both limits are allowed values."""

    kind: type[int] | type[float]
    minimum: float
    maximum: float
    requirement: str  #: what its text must be, for error messages

    def parse(self, text: str) -> float:
        """Parse the number. Raises ValueError if it is not one, or not within the limits."""
        value = self.kind(text)
        if not self.minimum <= value <= self.maximum:  # also for a NaN
            raise ValueError
        return value


SETTINGS: Mapping[str, Setting] = {
    "temperature": Setting(float, 0, 2, "a number from 0 to 2"),
    "top_p": Setting(float, 0.001, 1, "a number from 0.001 to 1"),
    "max_tokens": Setting(int, 1, 2**31 - 1, "a whole number from 1 on"),
    # JavaScript has no larger whole numbers.
    "seed": Setting(int, 0, 2**53 - 1, "a whole number from 0 on"),
}


def changed(settings: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """The settings with one more, or, if *text* is empty, without that one.

    Raises:
        ValueError: for a name or a text that cannot be set. The message says what can.
    """
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name!r}: use {', '.join(SETTINGS)}")
    others = {each: value for each, value in settings.items() if each != name}
    if not text:
        return others
    setting = SETTINGS[name]
    try:
        return others | {name: setting.parse(text)}
    except ValueError:
        raise ValueError(f"{name} must be {setting.requirement}, got {text!r}") from None
