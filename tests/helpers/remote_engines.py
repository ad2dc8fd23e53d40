"""Engines that a test takes for one another: of this process, and behind servers on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anystreamer import Engine
from anystreamer.remote import open_remote_engine
from anystreamer.remote._http import httpx
from anystreamer.server import create_app

from .serving import PLAIN, serving

__all__ = ["behind_a_server", "remote_engine"]


def remote_engine(url: str, model: str = "anystreamer", **kwargs: Any) -> Any:
    """An engine that is a server on loopback."""
    client = httpx.AsyncClient(trust_env=False, verify=PLAIN, timeout=600)
    return open_remote_engine(url, model, **{"max_retries": 0, "http_client": client, **kwargs})


@asynccontextmanager
async def behind_a_server(engine: Engine, **kwargs: Any) -> AsyncIterator[Engine]:
    """The same engine, through a server of ours."""
    # The head of a response comes with its first part. For a request that waits that is a comment,
    # by default after 15 seconds.
    kwargs = {"keep_alive": 0.2} | kwargs
    async with serving(create_app(engine, **kwargs)) as url, remote_engine(url) as remote:
        yield remote
