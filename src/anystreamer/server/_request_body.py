"""Parses and validates the body of a request. Its first error becomes an `APIError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ._bounded_json import from_bounded_json
from ._errors import APIError
from ._fields import INSTEAD

__all__ = ["BodyParser", "Request", "RequestT", "parsed", "validated"]


class Request(Protocol):
    """What a body is parsed to: a model of pydantic's."""

    model: str | None

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Make one from parsed JSON. Raises ValidationError."""

    def prepare(self) -> None:
        """Compute now what takes long and is needed later. This can run in a worker thread."""


RequestT = TypeVar("RequestT", bound=Request)

# A body of this size is parsed within a millisecond or two, and a thread would take longer (bytes).
INLINE_BYTES = 16 * 1024


class BodyParser:
    """Parses bodies: large ones in a worker thread, one at a time, beside the event loop."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(1)  # several would wait for the interpreter's lock

    async def parse(self, kind: type[RequestT], body: bytes) -> RequestT:
        """Parse a body. Raises APIError as `parsed` does."""
        if len(body) <= INLINE_BYTES:
            return parsed(kind, body)
        return await to_thread.run_sync(parsed, kind, body, limiter=self._limiter)


def parsed(kind: type[RequestT], body: bytes) -> RequestT:
    """Parse a body, validate it, and prepare the request.

    Raises:
        APIError: it is not a JSON object, or asks for something that is not supported.
    """
    try:
        data = from_bounded_json(body)
    except ValueError as exc:
        raise APIError(f"the body cannot be parsed as JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise APIError("the body must be a JSON object")
    request = validated(kind, data)
    request.prepare()
    return request


def validated(kind: type[RequestT], data: Mapping[str, Any]) -> RequestT:
    """Make a request from the object in its body. Raises APIError, which names the first error."""
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        raise _refusal(data, exc) from exc


def _refusal(data: Mapping[str, Any], exc: ValidationError) -> APIError:
    """The first of pydantic's errors, in OpenAI's format."""
    errors = exc.errors(include_url=False, include_context=False)
    # If several types were tried for a value, the error of the one that matched the most.
    alternatives = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    named = [(_name(data, each["loc"], each["type"] == "missing"), each) for each in alternatives]
    param, error = max(named, key=_closeness)
    if error["type"] == "extra_forbidden":
        instead = INSTEAD.get(param, "leave it out")
        return APIError(
            f"{param} is not supported: {instead}", param=param, code="unknown_parameter"
        )
    if error["type"] == "not_supported":
        return APIError(f"{param} {error['msg']}", param=param, code="unsupported_value")
    if error["type"] == "missing":
        return APIError(f"{param} is missing", param=param, code="missing_required_parameter")
    return APIError(f"{param}: {error['msg']}", param=param, code="invalid_value")


def _closeness(named: tuple[str, ErrorDetails]) -> tuple[int, bool]:
    """How much of a value matched before the error: its depth, and whether the type is right."""
    name, error = named
    return name.count(".") + name.count("["), not error["type"].endswith("_type")


def _name(data: Any, loc: tuple[int | str, ...], is_missing: bool) -> str:
    """The place of an error, such as ``messages[0].role``: without pydantic's names of types."""
    name = ""
    for number, part in enumerate(loc):
        if isinstance(part, int) and isinstance(data, list) and part < len(data):
            name, data = f"{name}[{part}]", data[part]
        elif isinstance(data, dict) and part in data:
            name, data = f"{name}.{part}" if name else str(part), data[part]
        elif is_missing and number == len(loc) - 1:
            name = f"{name}.{part}" if name else str(part)
    return name[:200]
