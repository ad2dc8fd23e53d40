"""Checks the names of hosts and of sites that a server is given: those that could never match."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["validate_allowed_hosts", "validate_origins"]

# A name, or all names below it; an address; or all.
_HOST = re.compile(r"\*|(?:\*\.)?[\w-]+(?:\.[\w-]+)*\.?|\[[0-9a-fA-F:.%]+\]")
# As browsers send it: a scheme and a host, with a port if it is not the usual one, and no path.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")


def validate_allowed_hosts(names: Sequence[str] | None) -> None:
    """Check names that requests can use. Raises TypeError or ValueError for one that cannot be."""
    for name in _listed("allowed_hosts", names):
        if not _HOST.fullmatch(name):
            raise ValueError(
                f"allowed_hosts: {name!r} is not the name of a host: write it without a scheme, a "
                "port and a path, such as 'llm.example.org' or '*.example.org'"
            )


def validate_origins(sites: Sequence[str]) -> None:
    """Check sites whose pages can send requests. Raises TypeError or ValueError, as above."""
    for site in _listed("allow_origins", sites):
        if not _ORIGIN.fullmatch(site):
            raise ValueError(
                f"allow_origins: {site!r} is not the origin of a site: write its scheme and its "
                "host, and its port if the address has one, without a slash at the end, such as "
                "'https://example.org'; '*' stands for all sites"
            )


def _listed(name: str, values: Sequence[str] | None) -> Sequence[str]:
    if isinstance(values, str) or not all(isinstance(each, str) for each in values or ()):
        raise TypeError(f"{name} must be a list of strings, got {values!r}")
    return values or ()
