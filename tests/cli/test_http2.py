"""HTTP/2, which hypercorn has, as `anystreamer serve` runs it. Clients are sockets."""

from __future__ import annotations

from typing import Any

import anyio
import h2.config
import h2.connection
import h2.events
import pytest
from anyio.abc import SocketStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from anystreamer.cli.connection_limits import ConnectionLimits

from ..helpers.scripted import PATIENCE
from ..helpers.serving import limited_serving
from .test_connections import application, connected, rest_of


class H2Client:
    """One connection. Each method says what a well-behaved client would not do, or waits for it."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        settings = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(settings)
        self.connection.initiate_connection()

    async def flush(self) -> None:
        await self.stream.send(self.connection.data_to_send())

    async def begin(self, path: str) -> int:
        """Send the head of a POST."""
        number: int = self.connection.get_next_available_stream_id()
        head = {":method": "POST", ":path": path, ":scheme": "http", ":authority": "127.0.0.1"}
        self.connection.send_headers(number, list(head.items()))
        await self.flush()
        return number

    async def status_of(self, number: int) -> str:
        """Wait for the whole response. Returns its status."""
        status = ""
        with anyio.fail_after(PATIENCE):
            while True:
                for event in self.connection.receive_data(await self.stream.receive()):
                    if getattr(event, "stream_id", None) != number:
                        continue
                    if isinstance(event, h2.events.ResponseReceived):
                        head: Any = dict(event.headers)
                        status = str(head[":status"])
                    elif isinstance(event, h2.events.StreamEnded):
                        return status
                await self.flush()


@pytest.mark.parametrize("attack", ["priorities", "path"])
async def test_a_connection_of_http2_that_fails_is_the_only_one(attack: str) -> None:
    """On trio, an exception in one of hypercorn's connections would end the server."""
    async with limited_serving(application(), "hypercorn") as url:
        async with connected(url) as stream, connected(url) as other:
            client, beside = H2Client(stream), H2Client(other)
            await beside.flush()
            if attack == "priorities":  # of more streams than its tree of priorities takes
                for number in range(1, 2 * 1100, 2):
                    client.connection.prioritize(number, weight=1)
                await client.flush()
            else:
                client.connection.config.validate_outbound_headers = False
                await client.begin("/\udce9".encode("utf-8", "surrogateescape"))  # type: ignore[arg-type]
            await rest_of(stream)
            assert await beside.status_of(await beside.begin("/")) == "404"
        async with connected(url) as stream:
            client = H2Client(stream)
            assert await client.status_of(await client.begin("/")) == "404"


async def test_the_rest_of_a_body_that_is_refused_does_not_end_a_connection() -> None:
    async with limited_serving(application(), "hypercorn") as url, connected(url) as stream:
        client = H2Client(stream)
        number = await client.begin("/")
        assert await client.status_of(number) == "404"
        client.connection.send_data(number, b"x" * 1000, end_stream=True)
        assert await client.status_of(await client.begin("/")) == "404"


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
async def test_a_body_that_does_not_arrive_does_not_hold_the_server_s_end(version: str) -> None:
    begun = anyio.Event()

    async def wait_for_body(request: Request) -> None:
        begun.set()
        await request.body()

    app = Starlette(routes=[Route("/", wait_for_body, methods=["POST"])])
    async with limited_serving(app, "hypercorn") as url:
        host, _, port = url.removeprefix("http://").partition(":")
        stream = await anyio.connect_tcp(host, int(port))
        if version == "HTTP/2":
            await H2Client(stream).begin("/")
        else:
            await stream.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n")
        await begun.wait()
    await stream.aclose()  # the server has ended before


async def test_a_silent_connection_of_http2_is_closed() -> None:
    limits = ConnectionLimits(head_timeout=0.2)
    async with limited_serving(application(), "hypercorn", limits) as url, connected(url) as stream:
        await H2Client(stream).flush()
        await rest_of(stream)
