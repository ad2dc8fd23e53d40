"""One record of the log for each request: what it was, how it ended, its tokens and its times."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..._reporting import SafeLogger
from ..._streams import TextStream
from .request_id import request_id_of
from .tracing import trace_id_of

__all__ = ["RequestLog", "note_end"]

_logger = SafeLogger("anystreamer.requests")

_KEY = "anystreamer.end"

# A longer path is cut (characters).
_PATH_LENGTH = 200


def note_end(scope: Scope, outcome: str, answers: Sequence[TextStream]) -> None:
    """Keep how a request for text has ended, for its record."""
    usages = [answer.usage for answer in answers if answer.usage is not None]
    scope[_KEY] = {
        "outcome": outcome,
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
    }


class RequestLog:
    """Middleware that logs each request to ``anystreamer.requests``, at the level INFO.

    The numbers are attributes of the record as well: ``method``, ``path``, ``status`` (None if
    there was no response), ``request_id``, ``seconds``, ``first_seconds`` (until the response
    began), ``trace_id`` (None if it is in no trace), and for requests for text ``outcome``,
    ``prompt_tokens`` and ``completion_tokens``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Called by Starlette."""
        if scope["type"] != "http" or not _logger.is_enabled_for(logging.INFO):
            return await self._app(scope, receive, send)
        began = perf_counter()
        fields: dict[str, object] = {"status": None, "first_seconds": None}

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields["status"] = message["status"]
                fields["first_seconds"] = round(perf_counter() - began, 4)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            fields["status"] = fields["status"] or 500  # an outer layer sends this response
            raise
        finally:
            fields |= {
                "method": scope["method"],
                # Escaped: a path must not look like another record.
                "path": ascii(scope["path"][:_PATH_LENGTH])[1:-1],
                "seconds": round(perf_counter() - began, 4),
                "request_id": request_id_of(scope),
                "trace_id": trace_id_of(scope),
                **scope.get(_KEY, {}),
            }
            _logger.info(_message(fields), extra=fields)


def _message(fields: dict[str, object]) -> str:
    parts = [fields["method"], fields["path"], fields["status"] or "-"]
    if (outcome := fields.get("outcome")) is not None:
        if outcome != str(fields["status"]):
            parts.append(outcome)
        parts.append(f"{fields['prompt_tokens']}+{fields['completion_tokens']} tokens")
    trace = fields["trace_id"]
    last = [fields["request_id"], *([] if trace is None else [f"trace={trace}"])]
    return " ".join(map(str, [*parts, f"{fields['seconds']} s", *last]))
