"""What to install for a part that is missing, for messages."""

from __future__ import annotations

__all__ = ["to_install"]


def to_install(extras: str) -> str:
    """The command that installs these extras, such as ``server`` or ``demo,server``."""
    return f"pip install 'anystreamer[{extras}]' (in a checkout: pip install '.[{extras}]')"
