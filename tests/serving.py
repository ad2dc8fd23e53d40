"""Real servers on loopback, in the test's own event loop."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import sniffio
import uvicorn
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

__all__ = ["SERVERS", "client_of", "data_of", "serving"]

SERVERS = ["uvicorn", "hypercorn"]


@asynccontextmanager
async def serving(app: Any, server: str = "", *, has_lifespan: bool = False) -> AsyncIterator[str]:
    """Serve *app*, by default with the server that is usual for the loop. Yields its address."""
    is_trio = sniffio.current_async_library() == "trio"
    if is_trio and server == "uvicorn":
        pytest.skip("uvicorn is asyncio's alone")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with anyio.create_task_group() as tasks:
        if is_trio or server == "hypercorn":
            stop = anyio.Event()
            tasks.start_soon(_hypercorn, app, listener, stop, is_trio)
            try:
                yield url
            finally:
                stop.set()
        else:
            config = uvicorn.Config(
                app,
                log_config=None,
                lifespan="on" if has_lifespan else "off",
                timeout_graceful_shutdown=1,
            )
            running = uvicorn.Server(config)
            tasks.start_soon(_uvicorn, running, listener)
            try:
                yield url
            finally:
                running.should_exit = True


async def _uvicorn(server: uvicorn.Server, listener: socket.socket) -> None:
    # A test that fails cancels it: it has to close what it has opened all the same.
    with listener, anyio.CancelScope(shield=True):
        await server.serve(sockets=[listener])


async def _hypercorn(
    app: ASGIFramework, listener: socket.socket, stop: anyio.Event, is_trio: bool
) -> None:
    if is_trio:
        from hypercorn.trio import serve
    else:
        from hypercorn.asyncio import serve  # type: ignore[assignment]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 1
    config.errorlog = None
    with anyio.CancelScope(shield=True):
        await serve(app, config, shutdown_trigger=stop.wait)


def client_of(url: str, **kwargs: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=30, **kwargs)


def data_of(body: str) -> list[Any]:
    """What the events of a body say: JSON, or the str ``[DONE]``. Comments are left out."""
    assert body.endswith("\n\n")
    events = [each for each in body.removesuffix("\n\n").split("\n\n") if not each.startswith(":")]
    assert all(each.startswith("data: ") and "\n" not in each for each in events)
    said = [each.removeprefix("data: ") for each in events]
    return [each if each == "[DONE]" else json.loads(each) for each in said]
