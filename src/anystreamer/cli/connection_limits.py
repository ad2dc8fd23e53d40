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

# A head, or trailers, can have this many lines. h11 takes about 10 us for each, and holds the loop.
MAX_HEAD_LINES = 256

# This many bytes are given to h11 at once, because it applies limits only to what is incomplete.
PARSED_AT_ONCE = 4 * 1024

# How long an idle client can take to confirm the end of a connection with TLS (seconds). Many never
# do, and asyncio would wait for 30.
TLS_END_TIMEOUT = 1.0

# What a server has open besides its connections: files of the model, sockets and pipes of its own.
OTHER_FILES = 100

# The whole response to a connection above the limit.
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What a client can use of the server before the application sees a request."""

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

        The application's own limit, `send_timeout`, passes first: it counts the client as stalled.
        """
        return None if self.send_timeout is None else 2 * self.send_timeout


def lines_of_head(waiting: bytes) -> int:
    """How many lines of a head, or of trailers, have arrived in bytes that the parser keeps.

    Only the first head counts: behind a request that is being answered, several can wait.
    """
    return waiting.partition(b"\r\n\r\n")[0].count(b"\n")
