"""What to install for a part that is missing."""

from __future__ import annotations

__all__ = ["NotInstalled", "to_install"]


class NotInstalled(ImportError):
    """What was asked for needs an extra that is not installed.

    Args:
        what: is not there, and what for.
        extra: has it.
        name: of the package.
    """

    def __init__(self, what: str, extra: str, name: str | None = None) -> None:
        super().__init__(f"{what}: {to_install(extra)}", name=name)


def to_install(extras: str) -> str:
    """The command that installs these extras, such as ``server`` or ``demo,server``."""
    return f"pip install 'anystreamer[{extras}]' (in a checkout: pip install '.[{extras}]')"
