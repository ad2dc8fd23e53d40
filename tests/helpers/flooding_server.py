"""A program: a server whose one answer never ends, sent as fast as its client reads.

It is a process of its own because it must not share the event loop of its client. On uvloop, a
socket that has new data in each iteration of the loop keeps anyio from delivering a cancellation.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FloodingServer", "flooding_server"]


class FloodingServer:
    """The running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.url = f"http://127.0.0.1:{process.stdout.readline().strip()}"

    @property
    def connection_closed(self) -> bool:
        """Whether its client has closed the connection."""
        return self._process.poll() == 0


@contextmanager
def flooding_server(first: bytes, again: bytes) -> Iterator[FloodingServer]:
    """Serve one request with *first*, and then with *again* until the connection is closed."""
    with subprocess.Popen(
        [sys.executable, __file__, json.dumps([first.decode(), again.decode()])],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield FloodingServer(process)
        finally:
            process.kill()


def main() -> None:
    first, again = (each.encode() for each in json.loads(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        try:
            connection.sendall(first)
            while True:
                connection.sendall(again)
        except ConnectionError:
            pass


if __name__ == "__main__":
    main()
