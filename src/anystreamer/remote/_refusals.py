"""Finds out why a response cannot be an answer, although its status is a success."""

from __future__ import annotations

from typing import Any

import openai
from anyio import CancelScope

from ._bodies import error_of, message_of_body
from ._errors import answer_error
from ._http import address_of, content_encoding, httpx, read_start
from ._secrets import without_secrets
from ._shapes import ServerError

__all__ = ["refusal"]

EVENT_STREAM = "text/event-stream"
# How long a body of another type is read for a message (seconds).
REFUSAL_TIMEOUT = 1.0


async def refusal(response: httpx.Response) -> Exception | None:
    """Why a response cannot be an answer; None if it can. If it cannot, it is closed."""
    media_type = _media_type_of(response)
    if encoding := content_encoding(response):
        wrong = (
            f"must not compress its answer, got content-encoding {encoding[:60]}: turn off "
            "compression of event streams on the server, or on the proxy in front of it"
        )
    elif response.http_version == "HTTP/2":
        wrong = (
            "answers over HTTP/2, in which the client cannot stop an answer: pass an http_client "
            "without http2=True"
        )
    elif media_type == EVENT_STREAM:
        return None
    else:
        return await _of_another_type(response, media_type)
    await _close(response)
    return _invalid(response, wrong)


async def _of_another_type(response: httpx.Response, media_type: str) -> Exception:
    """The error for a body of another type: an error (OpenRouter, LM Studio) or a proxy's page."""
    body = b""
    try:
        if media_type.startswith("text/") or media_type.endswith("json"):
            body = await read_start(response, REFUSAL_TIMEOUT)
    finally:
        await _close(response)
    if (error := error_of(body)) is not None:
        return answer_error(ServerError(error), response.request)
    got = media_type[:60] or "no content-type"
    if message := without_secrets(message_of_body(body)[:200], response.request):
        got += f" ({message})"
    return _invalid(response, f"must answer with {EVENT_STREAM}, got {got}: check base_url")


def _media_type_of(response: httpx.Response) -> str:
    sent: str = response.headers.get("content-type", "")
    return sent.partition(";")[0].strip().lower()


def _invalid(response: httpx.Response, wrong: str) -> Exception:
    message = f"{address_of(response.url)} {wrong}"
    return openai.APIResponseValidationError(response, None, message=message)


async def _close(response: httpx.Response) -> None:
    with CancelScope(shield=True):
        if response.http_version == "HTTP/2":
            # The client would only forget this stream of the connection, and the server go on.
            connection: Any = response.extensions.get("network_stream")
            if connection is not None:  # a transport of the caller's can have none
                await connection.aclose()
        await response.aclose()
