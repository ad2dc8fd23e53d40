"""What the server, the command that runs it, and Ray Serve's replicas share: checks and logs."""

from .asgi_extensions import ABORT, CANCELS_ON_DISCONNECT, CONNECTIONS
from .logs import LogLevel, RequestLogFormat, write_logs
from .site_names import validate_allowed_hosts, validate_origins

__all__ = [
    "ABORT",
    "CANCELS_ON_DISCONNECT",
    "CONNECTIONS",
    "LogLevel",
    "RequestLogFormat",
    "validate_allowed_hosts",
    "validate_origins",
    "write_logs",
]
