"""A program: a server that sends one endless answer, as fast as its client reads, or slowly.

It is a process of its own because it must not share the event loop of its client. On uvloop, a
socket that has new data in each iteration of the loop keeps anyio from delivering a cancellation.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["FloodingServer", "flooding_server"]


class FloodingServer:
    """The running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self._port = int(process.stdout.readline())
        self.url = f"http://127.0.0.1:{self._port}"

    def end_accept(self) -> None:
        """Connect in place of a client that may have given up before it did."""
        with suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", self._port)).close()

    @property
    def connection_closed(self) -> bool:
        """Whether its client has closed the connection."""
        return self._process.poll() == 0


@contextmanager
def flooding_server(first: bytes, again: bytes, *, pause: float = 0.0) -> Iterator[FloodingServer]:
    """Serve one request with *first*, and then with *again* until the connection is closed.

    Args:
        first: how the answer begins.
        again: sent over and over; nothing is sent if it is empty.
        pause: seconds after each time.
    """
    parts = [first.decode("latin-1"), again.decode("latin-1"), pause]
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(parts) + "\n")
        process.stdin.flush()
        try:
            yield FloodingServer(process)
        finally:
            process.kill()


def main() -> None:
    first, again, pause = json.loads(sys.stdin.readline())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection, suppress(ConnectionError):
        connection.recv(65536)
        connection.sendall(first.encode("latin-1"))
        while again:
            connection.sendall(again.encode("latin-1"))
            time.sleep(pause)
        while connection.recv(65536):
            pass


if __name__ == "__main__":
    main()
