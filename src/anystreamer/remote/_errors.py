"""Turns errors of connections and servers into public exceptions: ours if one fits, or openai's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai

from .._errors import EngineBusy, GenerationTimeout, is_kind, message_of, reason_of
from .._streams import PHASES
from ._bodies import message_of_body
from ._http import httpx, is_of_connection, is_timeout, retry_after
from ._limits import LimitExceeded
from ._response import InvalidEvent
from ._secrets import without_secrets
from ._shapes import ServerError

__all__ = ["answer_error", "connection_error", "connection_lost", "request_error"]

BUSY = (429, 503)
# Codes of errors that do not go away: an engine of ours that has ended, an account without credit.
NOT_BUSY = ("engine_unavailable", "insufficient_quota")


def request_error(exc: Exception) -> Exception:
    """The public error for what the client raised before an answer had begun."""
    if not is_kind(exc, openai.APIError):
        return exc  # raised by other code, such as a transport of the caller's
    match exc:
        case openai.APIStatusError():
            exc = _with_message(exc)
            if exc.status_code in BUSY and exc.code not in NOT_BUSY:
                return _because_of(exc, EngineBusy(None, retry_after(exc.response.headers)))
            return _because_of(exc, _server_timeout(exc.body) or exc)
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
    return exc


def connection_error(exc: Exception, request: httpx.Request) -> Exception:
    """The public error for what was raised while an answer was received, by any layer below."""
    if not is_of_connection(exc):
        return exc  # raised by other code, such as a transport of the caller's
    failure = openai.APITimeoutError(request) if is_timeout(exc) else connection_lost(request)
    return _because_of(exc, failure)


def answer_error(exc: Exception, request: httpx.Request) -> Exception:
    """The public error for what was raised while an answer was parsed."""
    if not is_kind(exc, (ServerError, InvalidEvent, LimitExceeded)):
        return exc
    error = exc.error if isinstance(exc, ServerError) else None
    if (timeout := _server_timeout(error)) is not None:
        return _because_of(exc, timeout)
    if _has_secret(exc, error, request):  # so neither the cause nor the body are kept
        return _api_error(without_secrets(str(exc), request), request, None)
    return _because_of(exc, _api_error(str(exc), request, error))


def connection_lost(request: httpx.Request, message: str | None = None) -> Exception:
    """The error of an answer that ended before the server sent how it ends."""
    return openai.APIConnectionError(
        message=message or f"{request.url.host} closed the connection in the middle of its answer",
        request=request,
    )


def _with_message(exc: openai.APIStatusError) -> openai.APIStatusError:
    """The same error, with the status and the server's message, which the client can leave out."""
    if not exc.response.is_stream_consumed:
        return exc
    status = f"Error code: {exc.status_code}"
    message = message_of_body(exc.response.content)
    if not message or (str(exc).startswith(status) and message in str(exc)):
        return exc
    return type(exc)(f"{status} - {message}", response=exc.response, body=exc.body)


def _because_of(exc: Exception, failure: Exception) -> Exception:
    if failure is not exc:
        failure.__cause__ = exc
    return failure


def _has_secret(exc: Exception, error: Any, request: httpx.Request) -> bool:
    try:
        shown = f"{exc} {error!r}"
    except RecursionError:  # nested too deeply for repr(), so no log can show it either
        shown = str(exc)
    return without_secrets(shown, request) != shown


def _api_error(message: str, request: httpx.Request, body: Any) -> openai.APIError:
    try:
        return openai.APIError(message, request, body=body)
    except Exception:  # it turns some values into text, and they can be nested too deeply for this
        return openai.APIError(message, request, body=None)


def _server_timeout(error: Any) -> GenerationTimeout | None:
    """A timeout on a server of ours, which sends its phase; None for any other error."""
    if not isinstance(error, Mapping) or error.get("type") != "timeout_error":
        return None
    phase = error.get("code")
    return GenerationTimeout(phase) if phase in PHASES else None


def _first_message(why: BaseException | None) -> str:
    """The first message in a chain of exceptions: on trio, the outer errors of TLS have none."""
    kind = type(why).__name__
    while why is not None:
        if message := message_of(why):
            return message
        why = reason_of(why)
    return kind
