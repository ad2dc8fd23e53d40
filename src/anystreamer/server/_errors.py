"""What goes wrong, as OpenAI's API says it: an error object, and a status where one can be sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from .._errors import EngineBusy, EngineClosed, EngineDied, GenerationTimeout
from ._asgi import log

__all__ = ["SHUTDOWN_ERROR", "APIError", "refusal_of", "retry_after"]

# Seconds. A client that is told of longer waits asks elsewhere, or its user does.
LONGEST_RETRY = 60

# The engine's names for what clients know under another one.
_PARAMS = {
    "logprobs": "logprobs",
    "do_sample": "temperature",
    "max_new_tokens": "max_tokens",
    "stop_strings": "stop",
    "worker_context": "seed",
}


class APIError(Exception):
    """A request is answered with an error object."""

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


# Cancelled by neither the client nor the model.
SHUTDOWN_ERROR = APIError(
    "the server has ended this request",
    status=503,
    type="server_error",
    code="engine_unavailable",
)


def retry_after(busy: EngineBusy) -> dict[str, str]:
    """The header that says when there is likely to be room."""
    seconds = math.ceil(busy.retry_after or 0)
    return {"retry-after": str(min(max(seconds, 1), LONGEST_RETRY))}


def refusal_of(exc: Exception, *, at_entry: bool, param: str) -> APIError:
    """What a client is told of an error of the engine's: not what was found inside of the server.

    Args:
        exc: the error.
        at_entry: whether a stream was being opened: then it speaks of what the client asked for.
        param: what was asked, where the error does not say which.
    """
    match exc:
        case APIError():
            return exc
        case EngineBusy() as exc:
            return APIError(
                str(exc),
                status=503,
                type="server_error",
                code="engine_busy",
                headers=retry_after(exc),
            )
        case EngineClosed() | EngineDied():
            return APIError(str(exc), status=503, type="server_error", code="engine_unavailable")
        case GenerationTimeout():
            return APIError(str(exc), status=504, type="timeout_error", code=exc.phase)
    # Of the template: it raises what it does not like, such as two answers in a row.
    is_template_s = type(exc).__module__.partition(".")[0] == "jinja2"
    if at_entry and (isinstance(exc, ValueError | TypeError) or is_template_s):
        said = str(exc)
        for name, known_as in _PARAMS.items():
            if name in said:
                said, param = said.replace(name, known_as), known_as
                break
        return APIError(said, param=param, code="invalid_value")
    log.error("a request failed", exc_info=exc)
    return APIError("the model failed", status=500, type="server_error")
