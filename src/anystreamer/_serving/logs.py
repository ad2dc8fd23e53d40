"""Sets up the logs of a server: its own records, and one record for each request."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from typing import TextIO

__all__ = ["LogLevel", "RequestLogFormat", "write_logs"]

# Attributes of the records that `anystreamer.server` logs for requests, in the order of the JSON.
_FIELDS = (
    "method",
    "path",
    "status",
    "outcome",
    "prompt_tokens",
    "completion_tokens",
    "first_seconds",
    "seconds",
    "request_id",
    "trace_id",
)


class LogLevel(StrEnum):
    """The lowest level of the records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class RequestLogFormat(StrEnum):
    """How requests are logged."""

    OFF = "off"
    TEXT = "text"
    JSON = "json"


def write_logs(level: LogLevel, requests: RequestLogFormat, stream: TextIO | None = None) -> None:
    """Write the logs of this process to *stream*, by default standard error."""
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    own = logging.getLogger("anystreamer")
    own.setLevel(level.upper())
    own.addHandler(_handler(text, stream))
    own.propagate = False
    of_requests = logging.getLogger("anystreamer.requests")
    of_requests.propagate = False
    if requests is RequestLogFormat.OFF:
        of_requests.setLevel(logging.CRITICAL)
    else:
        of_requests.setLevel(logging.INFO)
        form = _JSON() if requests is RequestLogFormat.JSON else text
        of_requests.addHandler(_handler(form, stream))


def _handler(formatter: logging.Formatter, stream: TextIO | None) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    return handler


class _JSON(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Its time in seconds since 1970, and its fields."""
        fields = {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        return json.dumps({"time": round(record.created, 3), **fields})
