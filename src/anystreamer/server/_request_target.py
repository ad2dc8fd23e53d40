"""Reads the target of a request that has a scheme and a host, as clients send it to proxies."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["AbsoluteTargets"]

_ABSOLUTE = re.compile(rb"https?://([^/@]+)(/.*)?", re.IGNORECASE | re.DOTALL)


class AbsoluteTargets:
    """Middleware for ``GET http://host/path``, which a server must accept (RFC 9112, 3.2.2).

    Its host counts, and the header ``Host`` does not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Called by Starlette."""
        await self._app(_with_path(scope), receive, send)


def _with_path(scope: Scope) -> Scope:
    if scope["type"] != "http" or scope["path"].startswith("/"):  # as nearly always
        return scope
    found = _ABSOLUTE.fullmatch(scope.get("raw_path") or scope["path"].encode())
    if found is None:
        return scope
    host, path = found[1], found[2] or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": unquote(path.decode("ascii", "replace")),
        "raw_path": path,
        "headers": [(b"host", host), *headers],
    }
