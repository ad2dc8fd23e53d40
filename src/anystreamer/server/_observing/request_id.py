"""The id of a request, which is in its response: the client's own, or a new one."""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADER", "RequestIds", "request_id_of"]

HEADER = "x-request-id"

# An id that does no harm in a log or a header, and is not too long for any tracing system.
_HARMLESS = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

_KEY = "anystreamer.request_id"


def request_id_of(scope: Scope) -> str:
    """The id of the request with this scope: the client's if it is harmless, or a new one."""
    if _KEY not in scope:
        given = Headers(scope=scope).get(HEADER, "")
        scope[_KEY] = given if _HARMLESS.fullmatch(given) else secrets.token_hex(16)
    return str(scope[_KEY])


class RequestIds:
    """Middleware that puts the id into each response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Called by Starlette."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = request_id_of(scope)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, with_id)
