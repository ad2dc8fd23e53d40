"""What an operator sees of a server: metrics, a log of requests, their ids and traces."""

from .metrics import Metrics
from .request_id import HEADER, RequestIds, request_id_of
from .request_log import RequestLog, note_end
from .tracing import RequestSpans

__all__ = [
    "HEADER",
    "Metrics",
    "RequestIds",
    "RequestLog",
    "RequestSpans",
    "note_end",
    "request_id_of",
]
