"""The limits of a server's connections, and the answer to a connection above their number."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "MAX_HEAD_LINES",
    "PARSED_AT_ONCE",
    "REFUSAL",
    "TLS_END_TIMEOUT",
    "ConnectionLimits",
    "lines_of_head",
]

# A head, and trailers, can have this many lines. Each takes h11 some 10 us, and the loop waits.
MAX_HEAD_LINES = 256

# This many bytes are given to h11 at once, because it applies limits only to what is incomplete.
PARSED_AT_ONCE = 4 * 1024

# How long an idle client can take to say that it has seen the end of a connection with TLS
# (seconds). Many never do, and asyncio would wait for 30.
TLS_END_TIMEOUT = 1.0

# What a server has open beside its connections: files of the model, sockets and pipes of its own.
OTHER_FILES = 100

# All of the response to a connection that is one too many.
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What a client can take from the server before the application knows of a request."""

    max_connections: int = 900  # with `OTHER_FILES`; most processes can have 1,024
    max_head_bytes: int = 64 * 1024  # of a request's head, of a chunk's size, and of trailers
    head_timeout: float = 10.0  # seconds until a request's head has arrived
    send_timeout: float | None = 30.0  # seconds for a client to take a part of its response

    def too_few_files(self) -> str | None:
        """What is wrong, if this process cannot have that many connections; otherwise None."""
        try:
            from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
        except ImportError:  # Windows, which has no such limit
            return None
        files, _ = getrlimit(RLIMIT_NOFILE)
        if files == RLIM_INFINITY or files >= self.max_connections + OTHER_FILES:
            return None
        return (
            f"this process can have {files} open files (ulimit -n), and --max-connections "
            f"{self.max_connections} needs {self.max_connections + OTHER_FILES}: further "
            "connections would wait without an answer. Raise that limit, or lower "
            "--max-connections"
        )

    @property
    def abort_timeout(self) -> float | None:
        """Seconds until the connection of a client that takes nothing is aborted.

        The application's own limit, `send_timeout`, comes first, and counts the client.
        """
        return None if self.send_timeout is None else 2 * self.send_timeout


def lines_of_head(waiting: bytes) -> int:
    """How many lines the first head, or the trailers, have of which these bytes are the begin.

    Of the requests behind a request that is being answered, each has a head of its own.
    """
    return waiting.partition(b"\r\n\r\n")[0].count(b"\n")
