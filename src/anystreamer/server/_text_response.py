"""`TextStreamResponse`: a stream as the response of one's own route."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Literal

from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from .._errors import EngineBusy, EngineClosed, EngineDied, GenerationTimeout
from .._streams import TextStream
from ._asgi import (
    EVENT_STREAM,
    NO_CACHE_HEADERS,
    BodySender,
    cancel_on_disconnect,
    check_keep_alive,
    log,
)
from ._errors import SHUTDOWN_ERROR, retry_after

__all__ = ["TextStreamResponse"]


class TextStreamResponse(Response):
    """A stream of text as a response, for a route of Starlette or FastAPI.

        @app.post("/story")
        async def story(request: Request) -> Response:
            prompt = (await request.json())["prompt"]
            return TextStreamResponse(engine.stream_text(prompt, max_new_tokens=200))

    The stream is opened before the headers go out. So an engine that is busy or gone is a real 503,
    and what the engine refuses at the entry a 400. A client that leaves stops the model, in the
    line, too.

    Args:
        engine_stream: what ``engine.stream_text(...)`` returns, unopened.
        format: ``"text"`` sends the text as it is; if the model fails after its start, the
            connection is cut. ``"sse"`` sends events for ``EventSource`` and its like: each piece
            as ``data: {"text": "..."}``, and last ``event: end`` with the finish reason and the
            usage, or ``event: error`` with a message.
        keep_alive: send a comment whenever an event stream was silent for so many seconds, as it is
            while the first token is awaited. None sends none.
        status_code: of the answer, if it begins.
        headers: more of them.
        media_type: in place of the usual one of *format*.
        background: run after it has been sent, as Starlette's responses have it.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """

    def __init__(
        self,
        engine_stream: AbstractAsyncContextManager[TextStream],
        format: Literal["text", "sse"] = "text",
        *,
        keep_alive: float | None = 15.0,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        if format not in ("text", "sse"):
            raise ValueError(f"format must be 'text' or 'sse', not {format!r}")
        check_keep_alive(keep_alive)
        if not hasattr(engine_stream, "__aenter__"):
            raise TypeError(
                "engine_stream must be what engine.stream_text(...) returns, before it is "
                f"opened, not {type(engine_stream).__name__}"
            )
        self._engine_stream = engine_stream
        self._sends_events = format == "sse"
        self._keep_alive = keep_alive if self._sends_events else None
        self.status_code = status_code
        self.media_type: str | None = media_type or (
            EVENT_STREAM if self._sends_events else "text/plain"
        )
        self.background = background
        self.init_headers({**NO_CACHE_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called by Starlette."""

        body = BodySender(send)

        async def work() -> None:
            if scope["method"] == "HEAD":  # asks for no text
                await body.start(self.status_code, self.raw_headers)
                return await body.end()
            refusal = await self._serve(body)
            if refusal is not None:
                await refusal(scope, receive, body)

        async def cut() -> None:
            if not body.has_started:
                await PlainTextResponse(str(SHUTDOWN_ERROR), 503)(scope, receive, body)
            elif self._sends_events and body.takes_parts:
                await body.end(_error_event(str(SHUTDOWN_ERROR)))

        await cancel_on_disconnect(receive, work, cut)
        if self.background is not None:
            await self.background()

    async def _serve(self, body: BodySender) -> Response | None:
        """Send the stream. Returns what to answer if it could not be opened."""
        try:
            async with self._engine_stream as stream:
                await body.start(self.status_code, self.raw_headers)
                await body.with_keep_alive(self._keep_alive, partial(self._send, stream, body))
            if self._sends_events:
                usage = stream.usage
                assert usage is not None
                end = {
                    "finish_reason": stream.finish_reason,
                    "usage": {
                        "prompt_tokens": usage.prompt_tokens,
                        "completion_tokens": usage.completion_tokens,
                    },
                }
                await body.send(f"event: end\ndata: {json.dumps(end)}\n\n")
        except Exception as exc:
            if not body.has_started:
                return _refusal(exc)
            if not self._sends_events:
                raise  # all that can still be said is that this was not the end
            if not isinstance(exc, GenerationTimeout | EngineClosed):
                log.exception("a stream failed after its start")
            await body.send(_error_event(_said_of(exc)))
        await body.end()
        return None

    async def _send(self, stream: TextStream, body: BodySender) -> None:
        async for piece in stream:
            await body.send(
                f"data: {json.dumps({'text': piece})}\n\n" if self._sends_events else piece
            )


def _refusal(exc: Exception) -> Response:
    """What to answer where the stream could not be opened. Raises what is no client's business."""
    if isinstance(exc, EngineBusy):
        return PlainTextResponse(str(exc), 503, retry_after(exc))
    if isinstance(exc, EngineClosed | EngineDied):
        return PlainTextResponse(str(exc), 503)
    if isinstance(exc, ValueError | TypeError):
        return PlainTextResponse(str(exc), 400)
    raise exc


def _error_event(message: str) -> str:
    return f"event: error\ndata: {json.dumps({'message': message})}\n\n"


def _said_of(exc: Exception) -> str:
    """What a client is told of an error: not what was found inside of the server."""
    own = isinstance(exc, GenerationTimeout | EngineClosed | EngineDied)
    return str(exc) if own else "the model failed"
