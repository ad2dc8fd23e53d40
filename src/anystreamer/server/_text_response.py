"""`TextStreamResponse`: a stream as the response of one's own route."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from anyio.abc import ObjectReceiveStream
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from .._bridge import close_unstarted, name_of, unblocking_kind
from .._errors import message_of
from .._streams import FinishReason, Usage
from ._asgi import EVENT_STREAM, log
from ._body_sender import BodySender, SendLimits
from ._errors import APIError
from ._open_streams import OpenStreams
from ._stream_response import ReadyItems, StreamResponse, unread_tokens

__all__ = ["TextStreamResponse"]


# The id of the last event. EventSource sends it by itself when it connects again.
LAST_ID = "anystreamer-end"


class TextStreamResponse(StreamResponse):
    """A stream of text as a response, for a route of Starlette or FastAPI.

        @app.post("/story")
        async def story(prompt: Prompt, request: Request) -> Response:
            engine = request.app.state.engine
            return TextStreamResponse(
                lambda: engine.stream_text(prompt.text, max_new_tokens=prompt.max_new_tokens)
            )

    The headers go out with the first text. Until then an error has a status of its own: 400 with
    the message for what cannot be generated from this request (a `ValueError` or a `TypeError`),
    503 for an engine that is busy, closed or dead, 504 for a timeout. Other exceptions are raised,
    for the application's own handlers. A client that disconnects stops the model, or leaves the
    engine's queue.

    Args:
        engine_stream: a function that returns ``engine.stream_text(...)``; or the return value
            itself, not opened yet. Any other stream of str works too, such as
            ``stream_iterable(...)``: it has no finish reason and no usage. Prefer the function: it
            is called when the response is sent, so if ``stream_text`` refuses an argument at once,
            such as an empty prompt, the status is 400. Without it your route raises that error, and
            the status is 500.
        format: ``"text"`` sends the text as it is; if the model fails after the first text, the
            connection is cut. ``"sse"`` sends events for ``EventSource`` and similar clients: each
            chunk as ``data: {"text": "..."}``, and last ``event: end`` with the finish reason and
            the usage, or ``event: failure`` with a message (``error`` is what ``EventSource`` calls
            events of its own). ``EventSource`` connects again after the last event, unless its page
            has closed it: that request, known by its ``Last-Event-ID``, gets an empty 204, which
            ends it.
        keep_alive: send a comment after this many seconds without an event, as while the first
            token is awaited. The headers go out with it. None sends none.
        send_timeout: how many seconds the client can take to receive a part. After that its
            connection is closed, and the model stops. None sets no limit.
        max_unsent_tokens: how many tokens can wait for a client that receives nothing. If more
            wait, its connection is closed, and the model stops. None sets no limit.
        max_unsent_bytes: the same for the parts of a response that were made from tokens.
        status_code: of the response, if the stream begins.
        headers: additional ones.
        media_type: instead of the usual one of *format*.
        background: runs after the response has been sent, as with Starlette's own responses.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """

    def __init__(
        self,
        engine_stream: AbstractAsyncContextManager[ObjectReceiveStream[str]]
        | Callable[[], AbstractAsyncContextManager[ObjectReceiveStream[str]]],
        format: Literal["text", "sse"] = "text",
        *,
        keep_alive: float | None = 15.0,
        send_timeout: float | None = 30.0,
        max_unsent_tokens: int | None = 10_000,
        max_unsent_bytes: int | None = 4 * 1024 * 1024,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        if format not in ("text", "sse"):
            raise ValueError(f"format must be 'text' or 'sse', got {format!r}")
        if not (callable(engine_stream) or hasattr(engine_stream, "__aenter__")):
            raise TypeError(
                "engine_stream must be a function that returns engine.stream_text(...), or what "
                f"that returns, before it is opened; got {type(engine_stream).__name__}"
            )
        if kind := callable(engine_stream) and unblocking_kind(engine_stream):
            raise TypeError(
                "engine_stream must be a function that returns engine.stream_text(...), "
                f"but {name_of(engine_stream)} is {kind}"
            )
        # An event can carry an error; plain text that ends looks complete.
        self._ends_with_error = self._sends_events = format == "sse"
        usual_type = EVENT_STREAM if self._sends_events else "text/plain"
        limits = SendLimits(
            keep_alive=keep_alive,
            timeout=send_timeout,
            max_unsent_tokens=max_unsent_tokens,
            max_unsent_bytes=max_unsent_bytes,
        )
        if not self._sends_events:
            limits = replace(limits, keep_alive=None)
        super().__init__(limits, status_code, headers, media_type or usual_type)
        self.background = background
        self._engine_stream = engine_stream
        self._stream: ObjectReceiveStream[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called by Starlette."""
        if (
            self._sends_events
            and Headers(raw=[*scope.get("headers", ())]).get("last-event-id") == LAST_ID
        ):
            await Response(status_code=204)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _open(self, streams: OpenStreams) -> None:
        stream = self._engine_stream
        if callable(stream):
            stream = stream()
            if not hasattr(stream, "__aenter__"):
                close_unstarted(stream)
                # Not a TypeError: those are about the request.
                raise RuntimeError(
                    "engine_stream must return engine.stream_text(...), before it is opened; "
                    f"it returned {type(stream).__qualname__}"
                )
        self._stream = await streams.open(stream)

    async def _send_body(self, sender: BodySender) -> None:
        assert self._stream is not None
        send_text = partial(self._send_text, self._stream, sender)
        await sender.within(self._send_limits, partial(unread_tokens, self._stream), send_text)

    async def _send_text(self, stream: ObjectReceiveStream[str], sender: BodySender) -> None:
        async for chunks in ReadyItems(stream):
            self._is_accepted = True
            await sender.send("".join(map(_text_event, chunks) if self._sends_events else chunks))

    def _end(self) -> str:
        if not self._sends_events:
            return ""
        assert self._stream is not None
        usage: Usage | None = getattr(self._stream, "usage", None)
        reason: FinishReason | None = getattr(self._stream, "finish_reason", None)
        counts = usage and {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        return _event({"finish_reason": reason, "usage": counts}, "end")

    def _refusal(self, exc: Exception) -> APIError:
        if self._stream is not None:  # by generate() itself: it could also be a fault of the model
            log.warning("the model refused a request", exc_info=exc)
        return APIError(message_of(exc) or type(exc).__name__)

    def _error_response(self, error: APIError) -> Response:
        return PlainTextResponse(str(error), error.status, error.headers)

    def _error_end(self, error: APIError) -> str:
        return _event({"message": str(error)}, "failure")

    def _unexpected(self, exc: Exception, sender: BodySender) -> APIError:
        if not sender.has_started:
            raise exc  # for the application's own handlers
        return super()._unexpected(exc, sender)


def _text_event(text: str) -> str:
    # There is one for each token, so the part that never changes is here.
    return f'data: {{"text": {json.dumps(text)}}}\n\n'


def _event(data: dict[str, Any], kind: str) -> str:
    """The last event of a stream."""
    return f"event: {kind}\nid: {LAST_ID}\ndata: {json.dumps(data)}\n\n"
