"""The sequence of a response that streams: open, head, body, end; an error; a disconnect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._errors import is_kind
from ._asgi import NO_CACHE_HEADERS, BodySender, cancel_on_disconnect
from ._errors import SHUTDOWN_ERROR, APIError, engine_error, is_about_request, unexpected_error

__all__ = ["StreamResponse"]


class StreamResponse(Response, ABC):
    """Opens streams and sends their text for as long as the client listens.

    An error before the head is a response of its own, with a status. After the head it goes into
    the body, in the subclass's format.
    """

    # Subclasses set it as soon as an error can no longer be about the request.
    _is_accepted = False
    # Whether the body can end with an error. If not, the exception makes the server cut it off.
    _ends_with_error = True
    # How it ended: a status; "failed", after the head; or "disconnected".
    _outcome = "disconnected"

    def __init__(
        self, status_code: int = 200, headers: Mapping[str, str] | None = None, media_type: str = ""
    ) -> None:
        self.status_code = status_code
        self.media_type: str | None = media_type
        self.background: BackgroundTask | None = None
        self.init_headers({**NO_CACHE_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called by Starlette."""
        sender = BodySender(send, self.status_code, self.raw_headers)
        fail = partial(self._fail, scope, receive, sender)

        async def serve() -> None:
            if scope["method"] == "HEAD":  # wants no text
                return await sender.end()
            error = await self._serve(sender)
            if error is not None:
                return await fail(error)
            self._outcome = "200"
            end = self._end()
            if isinstance(end, str):
                await sender.end(end)
            else:
                await end(scope, receive, sender)

        await cancel_on_disconnect(receive, serve, partial(fail, SHUTDOWN_ERROR))

    async def _serve(self, sender: BodySender) -> APIError | None:
        """Open the streams and send the body. Returns the error to end with.

        When it returns, all streams have been left.
        """
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                await self._send_body(sender)
        except Exception as exc:
            return self._error_of(exc, sender)
        return None

    async def _fail(
        self, scope: Scope, receive: Receive, sender: BodySender, error: APIError
    ) -> None:
        """End with an error: in the body, or as a response of its own if there is no head yet."""
        if sender.is_open:
            self._outcome = "failed"
            if self._ends_with_error:
                await sender.end(self._error_end(error))
        elif not sender.has_started:
            self._outcome = str(error.status)
            await self._error_response(error)(scope, receive, sender)

    def _error_of(self, exc: Exception, sender: BodySender) -> APIError:
        if sender.is_open and not self._ends_with_error:
            raise exc
        if is_kind(exc, APIError):
            return exc
        if (error := engine_error(exc)) is not None:
            return error
        if not self._is_accepted and is_about_request(exc):
            return self._refusal(exc)
        return self._unexpected(exc, sender)

    # -- the subclass's format

    @abstractmethod
    async def _open(self, stack: AsyncExitStack) -> None:
        """Open the streams. Raises what they are refused with."""

    @abstractmethod
    async def _send_body(self, sender: BodySender) -> None:
        """Send the text of the streams, or collect it for `_end`."""

    @abstractmethod
    def _end(self) -> str | Response:
        """The last part of the body; or all of the response, if nothing has been sent."""

    @abstractmethod
    def _refusal(self, exc: Exception) -> APIError:
        """The error for an exception that is about the request."""

    @abstractmethod
    def _error_response(self, error: APIError) -> Response:
        """An error as a response of its own."""

    @abstractmethod
    def _error_end(self, error: APIError) -> str:
        """The last part of a body that ends with an error."""

    def _unexpected(self, exc: Exception, sender: BodySender) -> APIError:
        """The error for an exception that clients must not see. It can raise it instead."""
        return unexpected_error(exc)
