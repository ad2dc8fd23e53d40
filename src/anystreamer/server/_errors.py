"""Errors as clients get them: an error object in OpenAI's format, with an HTTP status."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from .._errors import (
    EngineBusy,
    EngineClosed,
    EngineDied,
    GenerationTimeout,
    PromptTooLong,
    is_kind,
    message_of,
)
from .._installing import NotInstalled
from ._asgi import log

__all__ = [
    "SHUTDOWN_ERROR",
    "APIError",
    "engine_error",
    "in_clients_terms",
    "is_about_request",
    "unexpected_error",
]

# The longest wait that clients are asked for (seconds). After a longer one they would give up.
LONGEST_RETRY = 60

# Names of the engine's arguments, and of the parameters of OpenAI's API that set them.
_PARAMS = {
    "logprobs": "logprobs",
    "do_sample": "temperature",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    **{
        name: name
        for name in (
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
            "logit_bias",
            "top_k",
            "top_p",
            "min_p",
            "skip_special_tokens",
        )
    },
    "stop_strings": "stop",
    "response_format": "response_format",
    "parallel_tool_calls": "parallel_tool_calls",
    "tool_choice": "tool_choice",
    "tools": "tools",
}


class APIError(Exception):
    """A request that is answered with an error object."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.object: dict[str, Any] = {
            "error": {"message": message, "type": type, "param": param, "code": code}
        }

    def response(self) -> JSONResponse:
        """The error as a whole response."""
        return JSONResponse(self.object, self.status, self.headers)


# For a request that the server cancels while it shuts down.
SHUTDOWN_ERROR = APIError(
    "the server has ended this request",
    status=503,
    type="server_error",
    code="engine_unavailable",
)


def engine_error(exc: Exception) -> APIError | None:
    """An error of the engine's own as clients get it; None for any other exception."""
    if is_kind(exc, EngineBusy):
        return APIError(
            str(exc),
            status=503,
            type="server_error",
            code="engine_busy",
            headers=_retry_after(exc),
        )
    if is_kind(exc, (EngineClosed, EngineDied)):
        return APIError(str(exc), status=503, type="server_error", code="engine_unavailable")
    if is_kind(exc, GenerationTimeout):
        return APIError(str(exc), status=504, type="timeout_error", code=exc.phase)
    return None


def is_about_request(exc: Exception) -> bool:
    """Whether an exception refuses what the client sent, if nothing has been generated yet."""
    # Chat templates raise errors for messages that they do not accept, such as two answers in a
    # row. `NotInstalled` is raised if the request needs a package that this server does not have.
    is_template_error = type(exc).__module__.partition(".")[0] == "jinja2"
    return is_kind(exc, (ValueError, TypeError, NotInstalled)) or is_template_error


def in_clients_terms(exc: Exception, param: str, names: Mapping[str, str]) -> APIError:
    """A refusal by the engine, with OpenAI's name of the argument that the message names first.

    What follows can be text of the request.

    Args:
        exc: the refusal.
        param: the parameter if the message names no argument.
        names: names of the engine's arguments, and the parameters of this request that set them.
            `_PARAMS` has those that are the same for each request.
    """
    message = message_of(exc) or type(exc).__name__
    if is_kind(exc, PromptTooLong):
        return APIError(message, param=param, code="context_length_exceeded")
    params = {**_PARAMS, **names}
    if (named := re.search(rf"\b(?:{'|'.join(params)})\b", message)) is not None:
        param = params[named[0]]
        message = re.sub(rf"\b{named[0]}\b", param, message)
    return APIError(message, param=param, code="invalid_value")


def unexpected_error(exc: Exception) -> APIError:
    """Log an error that clients must not see. Returns what they get instead."""
    log.error("a request failed", exc_info=exc)
    return APIError("the model failed", status=500, type="server_error")


def _retry_after(busy: EngineBusy) -> dict[str, str]:
    """The header that says when to try again."""
    seconds = math.ceil(busy.retry_after or 0)
    return {"retry-after": str(min(max(seconds, 1), LONGEST_RETRY))}
