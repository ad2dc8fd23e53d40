"""Errors of a connection or a server, as public exceptions: ours if we have one, or openai's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from .._errors import EngineBusy, GenerationTimeout, is_kind, message_of, reason_of
from .._streams import PHASES
from ._response import InvalidEvent
from ._shapes import ServerError

__all__ = ["connection_lost", "to_public_error"]

BUSY = (429, 503)
# Waiting does not help with these: an engine of ours that has ended, an account without credit.
NOT_BUSY = ("engine_unavailable", "insufficient_quota")


def to_public_error(
    exc: Exception, request: httpx2.Request | None, *, is_answering: bool
) -> Exception:
    """Return the exception that a consumer sees in place of *exc*.

    Args:
        exc: raised by the client, or while an answer was read.
        request: the request that was sent, if one was.
        is_answering: whether the answer had begun.
    """
    if not is_kind(exc, (openai.APIError, httpx2.HTTPError, ServerError, InvalidEvent)):
        return exc  # raised by other code, such as a transport of the caller's
    failure = _failure_of(exc, request, is_answering)
    if failure is not exc and failure.__cause__ is None:
        failure.__cause__ = exc
    return failure


def connection_lost(request: httpx2.Request, message: str | None = None) -> Exception:
    """The error of an answer that ended before the server sent how it ends."""
    return openai.APIConnectionError(
        message=message or f"{request.url.host} closed the connection in the middle of its answer",
        request=request,
    )


def _failure_of(exc: Exception, request: httpx2.Request | None, is_answering: bool) -> Exception:
    match exc:
        case openai.APIStatusError():
            if exc.status_code in BUSY and exc.code not in NOT_BUSY:
                return EngineBusy(None, _retry_after(exc.response.headers))
            return _late(exc.body) or exc
        case openai.APITimeoutError():
            return exc
        case openai.APIConnectionError():
            # The client's message is "Connection error." only.
            why = reason_of(exc)
            unreached = openai.APIConnectionError(
                message=f"{exc.request.url.host} cannot be reached: {_first_message(why)}",
                request=exc.request,
            )
            unreached.__cause__ = why
            return unreached
    if request is None:
        return exc
    match exc:
        case httpx2.TimeoutException():
            return openai.APITimeoutError(request)
        case httpx2.RequestError() if is_answering:
            failure = connection_lost(request)
            failure.__cause__ = exc
            return failure
        case ServerError():
            return _late(exc.error) or openai.APIError(str(exc), request, body=exc.error)
        case InvalidEvent():
            return openai.APIError(str(exc), request, body=None)
    return exc


def _late(error: Any) -> GenerationTimeout | None:
    """The timeout of a server of ours, which sends its phase."""
    if not isinstance(error, Mapping) or error.get("type") != "timeout_error":
        return None
    phase = error.get("code")
    return GenerationTimeout(phase) if phase in PHASES else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a ``Retry-After``: a number, or a date."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _first_message(why: BaseException | None) -> str:
    """The first message in a chain of exceptions: on trio the outer ones of TLS have none."""
    kind = type(why).__name__
    while why is not None:
        if message := message_of(why):
            return message
        why = reason_of(why)
    return kind
