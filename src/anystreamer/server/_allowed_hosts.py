"""Refuses requests to host names that are not the server's own, and says how to allow them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._errors import APIError

__all__ = ["AllowedHosts"]

_PORT = re.compile(r":[0-9]*$")


class AllowedHosts:
    """Middleware around Starlette's `TrustedHostMiddleware`, whose error gives no reason."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Called by Starlette."""
        if scope["type"] != "http" or await self._is_allowed(scope, receive):
            return await self._app(scope, receive, send)
        host = Headers(scope=scope).get("host", "")[:200]
        name = _PORT.sub("", host)
        error = APIError(
            f"the host name {host!r} is not one of this server's: if it is yours, allow it with "
            f"anystreamer serve --allow-host {name}, or create_app(allowed_hosts=[...])",
            code="host_not_allowed",
        )
        await error.response()(scope, receive, send)

    async def _is_allowed(self, scope: Scope, receive: Receive) -> bool:
        passed = []

        async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
            passed.append(True)

        async def drop(message: Message) -> None:
            pass

        check = TrustedHostMiddleware(pass_on, self._allowed_hosts, www_redirect=False)
        await check(scope, receive, drop)
        return bool(passed)
