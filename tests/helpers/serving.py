"""Real servers on loopback, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import anyio
import httpx
import openai
import pytest
import sniffio
import uvicorn
import uvicorn.server
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

from anystreamer import Engine, open_engine
from anystreamer.cli.connection_limits import ConnectionLimits
from anystreamer.cli.listening import BACKLOG, Certificate, listening, url_of
from anystreamer.cli.run_server import serve
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

__all__ = [
    "LEFT_GENERATORS",
    "PLAIN",
    "SERVERS",
    "client_of",
    "data_of",
    "edge",
    "error_of",
    "events_of",
    "limited_serving",
    "official",
    "serving",
]

SERVERS = ["uvicorn", "hypercorn"]

# On trio, a client that stops reading leaves the generators of its HTTP library to be collected.
LEFT_GENERATORS = pytest.mark.filterwarnings(
    "ignore:Async generator '(httpx|httpx2|httpcore|openai):ResourceWarning"
)

# For clients of servers without TLS: each client would load all certificates, which takes 15 ms.
PLAIN = httpx.create_ssl_context(verify=False)


class _Impatient:
    """asyncio for uvicorn's server, which sleeps for 0.1 s before it checks whether to stop.

    Hundreds of tests start a server: together they would wait for minutes.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(delay / 10)


uvicorn.server.asyncio = _Impatient()  # type: ignore[assignment,attr-defined]


class _Server(uvicorn.Server):
    """A server of uvicorn that handles no signals.

    uvicorn restores the handlers that it found. If two servers run at once and the first one ends
    first, the second one restores the first one's handlers, and later tests get no Ctrl-C.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(
    app: Any, server: str = "", *, grace: int = 1, lifespan: Literal["on", "off"] = "off"
) -> AsyncIterator[str]:
    """Serve *app*, by default with the server that is usual for the loop. Yields its address."""
    is_trio = sniffio.current_async_library() == "trio"
    if is_trio and server == "uvicorn":
        pytest.skip("uvicorn is asyncio's alone")
    listener = listening("127.0.0.1", 0)
    url = url_of(listener)
    async with anyio.create_task_group() as tasks:
        if is_trio or server == "hypercorn":
            stop = anyio.Event()
            tasks.start_soon(_hypercorn, app, listener, stop, is_trio, grace)
            try:
                yield url
            finally:
                stop.set()
        else:
            config = uvicorn.Config(
                app, log_config=None, lifespan=lifespan, timeout_graceful_shutdown=grace
            )
            running = _Server(config)
            tasks.start_soon(_uvicorn, running, listener)
            try:
                yield url
            finally:
                running.should_exit = True


@asynccontextmanager
async def limited_serving(
    app: Any,
    server: str,
    limits: ConnectionLimits | None = None,
    *,
    send_buffer: int | None = None,
    certificate: Certificate | None = None,
    listener: socket.socket | None = None,
) -> AsyncIterator[str]:
    """Serve *app* as ``anystreamer serve`` does. Yields its address.

    *send_buffer* is about how many bytes the kernel keeps for a client that does not read.
    """
    backend = sniffio.current_async_library()
    if backend == "trio" and server == "uvicorn":
        pytest.skip("uvicorn is asyncio's alone")
    stop, limits = anyio.Event(), limits or ConnectionLimits()
    listener = listener or listening("127.0.0.1", 0)
    if send_buffer is not None:  # connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    url = url_of(listener, "https" if certificate else "http")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            _shielded, serve, app, listener, server, backend, limits, stop, 1.0, certificate
        )
        try:
            yield url
        finally:
            stop.set()


async def _shielded(func: Callable[..., Awaitable[None]], *args: Any) -> None:
    # A test that fails cancels it: it has to close what it has opened all the same.
    with anyio.CancelScope(shield=True):
        await func(*args)


async def _uvicorn(server: uvicorn.Server, listener: socket.socket) -> None:
    # A test that fails cancels it: it has to close what it has opened all the same.
    with listener, anyio.CancelScope(shield=True):
        await server.serve(sockets=[listener])


async def _hypercorn(
    app: ASGIFramework, listener: socket.socket, stop: anyio.Event, is_trio: bool, grace: int
) -> None:
    if is_trio:
        from hypercorn.trio import serve
    else:
        from hypercorn.asyncio import serve  # type: ignore[assignment]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = grace
    config.errorlog = None
    config.backlog = BACKLOG
    with anyio.CancelScope(shield=True):
        await serve(app, config, shutdown_trigger=stop.wait)


def client_of(url: str, timeout: float | None = 30, **kwargs: Any) -> httpx.AsyncClient:
    options = {"base_url": url, "trust_env": False, "timeout": timeout, "verify": PLAIN, **kwargs}
    return httpx.AsyncClient(**options)


def official(url: str) -> openai.AsyncOpenAI:
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False, verify=PLAIN)
    client = openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="key", max_retries=0, http_client=http_client
    )
    # The client would look the platform up in a thread of asyncio, which stays as long as the loop.
    client._platform = openai._base_client.get_platform()
    return client


@asynccontextmanager
async def edge(
    model: ScriptedModel, *, server: str = "", max_waiting: int | None = None, **kwargs: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """Serve *model*. Yields a client of the server, and the engine."""
    async with open_engine(model, model.tokenizer, max_waiting=max_waiting) as engine:
        async with serving(create_app(engine, **kwargs), server) as url:
            async with client_of(url) as client:
                yield client, engine


def error_of(response: httpx.Response) -> Any:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events_of(stream: str) -> list[tuple[str, str]]:
    """The types and the data of events, as ``EventSource`` takes them: by WHATWG's algorithm."""
    events, kind, data = [], "", ""
    # A line without its end does not count, and neither does an event without an empty line.
    *lines, _ = re.split("\r\n|\n|\r", stream.removeprefix("\ufeff"))
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((kind or "message", data.removesuffix("\n")))
            kind, data = "", ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += f"{value}\n"
    return events


def data_of(body: str) -> list[Any]:
    """The data of the events in a body: JSON, or the str ``[DONE]``. Comments are left out."""
    assert body.endswith("\n\n")
    events = [each for each in body.removesuffix("\n\n").split("\n\n") if not each.startswith(":")]
    assert all(each.startswith("data: ") and "\n" not in each for each in events)
    data = [each.removeprefix("data: ") for each in events]
    return [each if each == "[DONE]" else json.loads(each) for each in data]
