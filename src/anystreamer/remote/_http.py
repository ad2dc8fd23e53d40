"""The HTTP client that openai's client uses: which library it is from, and what it must not do.

openai 3 is built on httpx2, and also accepts a client of httpx. openai 2 is built on httpx.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import openai
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    current_time,
)

from .._errors import is_kind
from .._reporting import SafeLogger
from ._secrets import without_secrets

if TYPE_CHECKING:
    import httpx2 as httpx

__all__ = [
    "address_of",
    "basic_authorization",
    "content_encoding",
    "guard",
    "httpx",
    "is_of_connection",
    "is_timeout",
    "new_client",
    "read_start",
    "retry_after",
]

logger = SafeLogger()

# Limits for the body of an error: how much is read (bytes), for how long (seconds), and how deeply
# it can be nested. The message is at the beginning, so the rest is not needed.
ERROR_SIZE = 65536
ERROR_TIMEOUT = 10.0
ERROR_DEPTH = 50

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')  # of JSON
_LIBRARIES = ("httpx2", "httpx")

# Errors of the layers below. The HTTP library turns nearly all of them into its own.
_ERRORS_BELOW = (OSError, EOFError, BrokenResourceError, ClosedResourceError, EndOfStream)


def _library_of(kind: type) -> Any:
    """The library that a class is derived from."""
    names = (each.__module__.partition(".")[0] for each in kind.__mro__)
    return sys.modules[next(name for name in names if name in _LIBRARIES)]


if not TYPE_CHECKING:
    httpx = _library_of(openai.DefaultAsyncHttpxClient)


def is_timeout(exc: Exception) -> bool:
    """Whether an error is a timeout of the client, of either library."""
    return is_kind(exc, tuple(each.TimeoutException for each in _libraries()))


def is_of_connection(exc: Exception) -> bool:
    """Whether an error is of a connection: of either HTTP library, or of the layers below."""
    kinds = (kind for each in _libraries() for kind in (each.HTTPError, each.StreamError))
    return is_kind(exc, (*kinds, *_ERRORS_BELOW))


def _libraries() -> list[Any]:
    return [sys.modules[name] for name in _LIBRARIES if name in sys.modules]


def address_of(url: httpx.URL) -> str:
    """A URL for a message: without what can be secret."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def basic_authorization(url: httpx.URL) -> str:
    """The header that stands for the user and the password of a URL."""
    token = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    return f"Basic {token}"


def content_encoding(response: httpx.Response) -> str:
    """How a body is compressed; empty if it is not. Each request asks for "identity"."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds to wait before a request is sent again; None if the headers do not say it.

    ``Retry-After`` is a number of seconds or a date. Azure and OpenAI also send milliseconds, which
    the client prefers.
    """
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        milliseconds = float(headers.get("retry-after-ms", ""))
        if math.isfinite(milliseconds):
            return max(0.0, milliseconds / 1000)
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except Exception:  # this parser, for mails, raises many kinds of errors
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def new_client() -> httpx.AsyncClient:
    """Make a client with openai's own settings that keeps no cookies: they could pile up."""
    client = openai.DefaultAsyncHttpxClient()
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return client


def guard(client: httpx.AsyncClient) -> None:
    """Let a client follow no redirect, and read errors within limits."""
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [_limit_error, *hooks["response"]]}


async def _limit_error(response: httpx.Response) -> None:
    """Replace the body of an error by one that can be read at once, and remove its redirect.

    The client calls this with each response before anything else sees it. It must not raise: that
    would become an error of the connection, after which the request is sent again.
    """
    if response.is_success:
        return
    headers = response.headers
    if location := headers.pop("location", None):
        # The other server would get the prompt, and the key if it is in a header of the caller's.
        body = _message(
            f"{address_of(response.request.url)} redirects to {location[:200]}, which is not "
            "followed: if that address is correct, pass it as base_url"
        )
    elif encoding := content_encoding(response):
        body = _message(f"the error's body has content-encoding {encoding[:60]}: it was not read")
    else:
        body = await read_start(response, ERROR_TIMEOUT)
        if _depth(body) > ERROR_DEPTH:
            body = _message(f"the error's body is nested more than {ERROR_DEPTH} levels deep")
    await _close(response)
    headers.pop("content-encoding", None)
    if retry_after(headers) is None:
        headers.pop("retry-after", None)
    response.encoding = "utf-8"  # a server could name a codec of Python's that decompresses
    text = body.decode(errors="surrogateescape")
    body = without_secrets(text, response.request).encode(errors="surrogateescape")
    response.stream = _library_of(type(response)).ByteStream(body)


async def read_start(response: httpx.Response, seconds: float) -> bytes:
    """Read the body to its end, to a limit, to a deadline, or until the connection breaks.

    See `ResponseReader` for why the loop is not left.
    """
    body = bytearray()
    stream: Any = response.stream
    try:
        with CancelScope(deadline=current_time() + seconds) as scope:
            async for part in stream:
                body += part[: ERROR_SIZE - len(body)]
                if len(body) == ERROR_SIZE:
                    scope.cancel()
    except Exception as exc:
        logger.debug("in the body of an error: %r", exc)
    return bytes(body)


async def _close(response: httpx.Response) -> None:
    stream: Any = response.stream
    try:
        await stream.aclose()
    except Exception as exc:
        logger.debug("after the body of an error: %r", exc)


def _message(text: str) -> bytes:
    return json.dumps({"error": {"message": text}}).encode()


def _depth(body: bytes) -> int:
    """How deeply JSON is nested; for other text, some number."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
