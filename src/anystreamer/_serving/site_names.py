"""Refuses names of hosts and of sites that could never match those of a request."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["validate_allowed_hosts", "validate_origins"]

# A name, or all names below it; an address; or all.
_HOST = re.compile(r"\*|(?:\*\.)?[\w-]+(?:\.[\w-]+)*\.?|\[[0-9a-fA-F:.%]+\]")
# As browsers send it. Extensions and desktop applications have schemes of their own.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_USUAL_PORTS = {"http": "80", "https": "443"}
_ANY_OR_OPAQUE = ("*", "null")


def validate_allowed_hosts(names: Sequence[str] | None) -> None:
    """Check host names that requests can use. Raises TypeError or ValueError for a wrong one."""
    for name in _listed("allowed_hosts", names):
        if not _HOST.fullmatch(name):
            raise ValueError(
                f"allowed_hosts: {name!r} is not the name of a host: write it without a scheme, a "
                "port and a path, such as 'llm.example.org' or '*.example.org'"
            )


def validate_origins(origins: Sequence[str]) -> None:
    """Check a list of origins: one that no browser sends would allow nothing.

    Raises:
        TypeError, ValueError: for a wrong one.
    """
    for origin in _listed("allow_origins", origins):
        if origin in _ANY_OR_OPAQUE:
            continue
        found = _ORIGIN.fullmatch(origin)
        if found is None or found["port"] == _USUAL_PORTS.get(found["scheme"], ""):
            raise ValueError(
                f"allow_origins: no browser sends {origin!r}; write the scheme, the host, and the "
                "port if it is not the usual one, in lower case and without a path, such as "
                "'https://example.org'"
            )


def _listed(name: str, values: Sequence[str] | None) -> Sequence[str]:
    if isinstance(values, str) or not all(isinstance(each, str) for each in values or ()):
        raise TypeError(f"{name} must be a list of strings, got {values!r}")
    return values or ()
