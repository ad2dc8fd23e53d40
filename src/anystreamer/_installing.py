"""What to install where a package is missing: the command, and the error that names it."""

from __future__ import annotations

__all__ = ["NotInstalled", "to_install"]


class NotInstalled(ImportError):
    """An argument needs a package that is not installed.

    It has a class of its own because a server answers it as a request that it cannot serve, and
    other ImportErrors as failures.

    Args:
        need: what needs which package, such as ``pictures need Pillow``.
        extra: the extra of anystreamer that installs the package.
        name: the name of the package to import.
    """

    def __init__(self, need: str, extra: str, name: str | None = None) -> None:
        super().__init__(f"{need}: {to_install(extra)}", name=name)
        self._given = (need, extra, name)

    def __reduce__(self) -> tuple[type[NotInstalled], tuple[str, str, str | None]]:
        return type(self), self._given


def to_install(extras: str) -> str:
    """The command that installs these extras, such as ``server`` or ``demo,server``."""
    return f"pip install 'anystreamer[{extras}]' (in a checkout: pip install '.[{extras}]')"
