"""Lets pages of other sites use the application from a browser: CORS."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ._observing import HEADER

__all__ = ["cross_origin"]


def cross_origin(origins: Sequence[str]) -> Middleware:
    """The middleware for pages of these sites."""
    options: dict[str, Any] = {}
    # Before a page of the Internet reaches loopback or a private network, browsers can ask for this
    # permission. Older releases of Starlette do not know it.
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
