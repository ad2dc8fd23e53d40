"""The trace that a request belongs to, by W3C's ``traceparent``, and a span for each request.

The names follow OpenTelemetry's conventions for HTTP servers:
https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..._reporting import reporting

__all__ = ["RequestSpans", "trace_id_of"]

_KEY = "anystreamer.trace_id"

# Version 00 has these four parts; later ones can have more of them.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-[0-9a-f]{2}(?P<more>-.*)?"
)


def trace_id_of(scope: Scope) -> str | None:
    """The id of the trace that a request belongs to, if it has one.

    The id is from the request's span or, if the request has no span, from the client's header.
    """
    if (known := scope.get(_KEY)) is not None:
        return str(known)
    if (own := _current_trace_id()) is not None:
        return own
    sent = [value for name, value in scope["headers"] if name.lower() == b"traceparent"]
    if len(sent) != 1:  # with several, it is not known which one counts
        return None
    found = _TRACEPARENT.fullmatch(sent[0].decode("latin-1").strip())
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    return found["trace"]


def _current_trace_id() -> str | None:
    """The id of the trace of the current span; None if there is no span."""
    trace = sys.modules.get("opentelemetry.trace")
    with reporting:
        if trace is not None:
            context = trace.get_current_span().get_span_context()
            return f"{context.trace_id:032x}" if context.is_valid else None
    return None


class RequestSpans:
    """Middleware of a route: a span for each request, in the client's trace.

    It starts a span only if the application uses OpenTelemetry, and no middleware of OpenTelemetry
    has started one. The spans of generations are inside this span.
    """

    def __init__(self, app: ASGIApp, route: str) -> None:
        self._app = app
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Called by Starlette."""
        # An application that records spans has imported this module. For others it is not loaded.
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None or _current_trace_id() is not None:
            return await self._app(scope, receive, send)
        span = self._start(trace, scope)
        if span is None:
            return await self._app(scope, receive, send)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                with reporting:
                    _note_status(trace, span, message["status"])
            await send(message)

        try:
            with _current(trace, span):
                await self._app(scope, receive, noted)
        finally:
            with reporting:
                span.end()

    def _start(self, trace: Any, scope: Scope) -> Any | None:
        """Start a span; return None if that fails."""
        with reporting:
            from opentelemetry.propagate import extract

            # With the propagators that the application has set: W3C's, by default.
            parent = extract(dict(Headers(scope=scope)))
            span = trace.get_tracer("anystreamer").start_span(
                f"{scope['method']} {self._route}",
                context=parent,
                kind=trace.SpanKind.SERVER,
                attributes={
                    "http.request.method": scope["method"],
                    "http.route": self._route,
                    "url.path": scope["path"],
                    "url.scheme": scope.get("scheme", "http"),
                },
            )
            context = span.get_span_context()
            if context.is_valid:
                scope[_KEY] = f"{context.trace_id:032x}"
            return span
        return None


@contextmanager
def _current(trace: Any, span: Any) -> Iterator[None]:
    """A block in which this is the current span."""
    token = None
    with reporting:
        from opentelemetry.context import attach, detach

        token = attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        if token is not None:
            with reporting:
                detach(token)


def _note_status(trace: Any, span: Any, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:  # of the server: a request that is refused is the client's error
        span.set_attribute("error.type", str(status))
        span.set_status(trace.Status(trace.StatusCode.ERROR))
