"""The sequence of a response that streams: open, head, body, end; an error; a disconnect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from anyio import EndOfStream, move_on_after, sleep
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._bridge import ThreadStream
from .._errors import is_kind
from .._serving import ABORT, CANCELS_ON_DISCONNECT
from .._text import FormTooComplex
from ._asgi import STREAM_HEADERS, cancel_on_disconnect
from ._body_sender import BodySender, ClientStalled, SendLimits
from ._errors import SHUTDOWN_ERROR, APIError, engine_error, is_about_request, unexpected_error
from ._open_streams import OpenStreams

__all__ = ["ReadyItems", "StreamResponse", "unread_tokens"]

T = TypeVar("T")

# A part of a body has this many items at most, so that it stays small.
ITEMS_AT_ONCE = 100

# How long the server can take to close the connection of a stalled client (seconds). A server that
# cannot do it at once gets a response without its last part, and can log an error.
STALLED_CLOSE_TIMEOUT = 5.0


def unread_tokens(stream: object) -> int:
    """How many tokens of a stream wait to be sent; 0 where an engine of another kind made it."""
    return int(getattr(stream, "unread_tokens", 0))


class ReadyItems(AsyncIterator[list[T]]):
    """Iterate over a stream by all the items that are ready: they go out as one part.

    Each step is a checkpoint. Without one, a stream that always has text would hold the event loop,
    and a disconnect would go unnoticed: not every server's ``send()`` is a checkpoint.
    """

    # Not a generator: the event loop would have to close it when a response is cancelled.

    def __init__(self, stream: ObjectReceiveStream[T]) -> None:
        self._receive: Callable[[], Awaitable[list[T]]] = partial(_receive_one, stream)
        if isinstance(stream, ThreadStream):  # its receive() is a checkpoint
            self._receive = partial(stream.receive_many, ITEMS_AT_ONCE)

    async def __anext__(self) -> list[T]:
        try:
            return await self._receive()
        except EndOfStream:
            pass
        raise StopAsyncIteration


async def _receive_one(stream: ObjectReceiveStream[T]) -> list[T]:
    await checkpoint()  # first: a cancellation loses no item
    return [await stream.receive()]


class StreamResponse(Response, ABC):
    """Opens streams and sends their text for as long as the client listens.

    An error before the head is a response of its own, with a status. After the head it goes into
    the body, in the subclass's format.
    """

    # Subclasses set it as soon as an error can no longer be about the request.
    _is_accepted = False
    # Whether the body can end with an error. If not, the exception makes the server cut it off.
    _ends_with_error = True
    # How it ended: a status; "failed", after the head; "stalled"; or "disconnected".
    _outcome = "disconnected"

    def __init__(
        self,
        limits: SendLimits,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "",
    ) -> None:
        self._send_limits = limits
        self.status_code = status_code
        self.media_type: str | None = media_type
        self.background: BackgroundTask | None = None
        own = {name.lower(): value for name, value in (headers or {}).items()}
        self.init_headers(STREAM_HEADERS | own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called by Starlette."""
        extensions = scope.get("extensions", {})
        sender = BodySender(send, self.status_code, self.raw_headers, extensions.get(ABORT))
        if scope["method"] == "HEAD":  # its response has no body
            return await sender.end()
        fail = partial(self._fail, scope, receive, sender)
        error: APIError | None = None

        async def serve() -> None:
            nonlocal error
            try:
                error = await self._serve(sender)
            except ClientStalled:
                # Nothing can be sent any more, and the streams have been left. Wait until the
                # server has closed the connection: this is cancelled then.
                await sleep(STALLED_CLOSE_TIMEOUT)

        async def cut() -> None:
            if CANCELS_ON_DISCONNECT not in extensions:
                await fail(SHUTDOWN_ERROR)

        is_done = await cancel_on_disconnect(receive, serve, cut)
        if sender.is_stalled:
            self._outcome = "stalled"
        elif is_done:
            await self._finish(scope, receive, sender, error)

    async def _finish(
        self, scope: Scope, receive: Receive, sender: BodySender, error: APIError | None
    ) -> None:
        """Send the last part, or an error."""
        with move_on_after(self._send_limits.timeout) as sending:
            if error is None:
                await self._send_end(scope, receive, sender)
            else:
                await self._fail(scope, receive, sender, error)
        if sending.cancelled_caught:
            self._outcome = "stalled"

    async def _send_end(self, scope: Scope, receive: Receive, sender: BodySender) -> None:
        """Send the last part, or all of a response that is sent whole."""
        self._outcome = "200"
        end = self._end()
        if isinstance(end, str):
            await sender.end(end)
        else:
            await end(scope, receive, sender)

    async def _serve(self, sender: BodySender) -> APIError | None:
        """Open the streams and send the body. Returns the error to end with.

        When it returns, all streams have been left.
        """
        try:
            async with OpenStreams() as streams:
                await self._open(streams)
                await self._send_body(sender)
        except ClientStalled:
            raise
        except Exception as exc:
            if sender.is_open and not self._ends_with_error:
                with move_on_after(self._send_limits.timeout):
                    await sender.fail(exc)
                raise
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
        if is_kind(exc, APIError):
            return exc
        if (error := engine_error(exc)) is not None:
            return error
        if is_kind(exc, FormTooComplex) or (not self._is_accepted and is_about_request(exc)):
            return self._refusal(exc)
        return self._unexpected(exc, sender)

    # -- the subclass's format

    @abstractmethod
    async def _open(self, streams: OpenStreams) -> None:
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
