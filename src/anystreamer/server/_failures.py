"""Answers with an error object where the application fails."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._errors import APIError

__all__ = ["Failures"]


class Failures:
    """Middleware that sends the status 500, and passes the exception on to the server's log.

    Starlette itself would send it outside of all middleware, and so without the headers that let
    pages of other sites read it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Called by Starlette."""
        has_started = False

        async def noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if scope["type"] == "http" and not has_started:
                error = APIError("the server failed", status=500, type="server_error")
                await error.response()(scope, receive, send)
            raise
