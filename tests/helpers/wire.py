"""A server of bare sockets, that does to each connection what a test tells it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

__all__ = [
    "CLOSING",
    "DONE",
    "HEAD",
    "Play",
    "Wire",
    "chunked",
    "ending",
    "event",
    "said",
    "sends",
    "wire",
]

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
# A body without a length: it ends with the connection.
CLOSING = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def said(text: str, **more: Any) -> bytes:
    """An event with text, that both kinds of request understand."""
    choice = {"index": 0, "text": text, "finish_reason": None}
    return event({"choices": [{**choice, **more}]})


def ending(reason: str = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "text": "", "finish_reason": reason, **more}
    return event({"choices": [choice]})


def chunked(*parts: bytes) -> bytes:
    """A chunk of a body for each part; an empty one ends it."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@dataclass
class Wire:
    url: str
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    connections: int = 0
    open_ones: int = 0

    @property
    def bodies(self) -> list[Any]:
        return [body for _, _, body in self.requests]

    async def request(self, stream: SocketStream) -> None:
        """Read one."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += await stream.receive()
        self.requests.append((first.split(" ")[1], headers, json.loads(body)))


Play = Callable[[SocketStream], Awaitable[object]]


def sends(*parts: bytes) -> Play:
    """Send these, each by itself, and close."""

    async def play(stream: SocketStream) -> None:
        for part in parts:
            await stream.send(part)

    return play


@asynccontextmanager
async def wire(*plays: Play, reads: bool = True) -> AsyncIterator[Wire]:
    """Serve, with the first play on the first connection; the last one on all that come later."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Wire(f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}")

    async def serve(stream: SocketStream) -> None:
        play = plays[min(server.connections, len(plays) - 1)]
        server.connections += 1
        server.open_ones += 1
        try:
            # The client may have gone.
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                async with stream:
                    if reads:
                        await server.request(stream)
                    await play(stream)
        finally:
            server.open_ones -= 1

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield server
        tasks.cancel_scope.cancel()
