"""Which pages of other sites can use the application from a browser: CORS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from inspect import signature
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ._observing import HEADER

__all__ = ["cross_origin", "validate_origins"]

# As browsers send it. Extensions and desktop applications have schemes of their own.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_USUAL_PORTS = {"http": "80", "https": "443"}
_ANY_OR_OPAQUE = ("*", "null")


def validate_origins(origins: Sequence[str]) -> None:
    """Check a list of origins: one that no browser sends would allow nothing.

    Raises:
        ValueError: for one of them.
    """
    for origin in origins:
        if origin in _ANY_OR_OPAQUE:
            continue
        found = _ORIGIN.fullmatch(origin)
        if found is None or found["port"] == _USUAL_PORTS.get(found["scheme"], ""):
            raise ValueError(
                f"allow_origins: no browser sends {origin!r}; write the scheme, the host, and the "
                "port if it is not the usual one, in lower case and without a path, such as "
                "'https://example.org'"
            )


def cross_origin(origins: Sequence[str]) -> Middleware:
    """The middleware for pages of these sites."""
    options: dict[str, Any] = {}
    # Browsers can ask in this way before a page of the Internet reaches loopback or a private
    # network. Older releases of Starlette do not look at it.
    if "allow_private_network" in signature(CORSMiddleware).parameters:
        options["allow_private_network"] = True
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],  # the official client sends headers of its own from a browser
        expose_headers=["retry-after", HEADER],
        **options,
    )
