"""Streams of a worker as responses of real servers: rows of a database."""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from anystreamer import Worker, open_worker
from anystreamer.server import TextStreamResponse

from ..helpers.scripted import Latch, until
from ..helpers.serving import SERVERS, client_of, events_of, serving

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    # On trio: generators of clients that break off, and those that Starlette does not close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx|httpcore|tests):ResourceWarning"),
]

# A cursor that never ends, in the thread of its connection.
NUMBERS = """
    with recursive numbers(n) as (select 1 union all select n + 1 from numbers)
    select n || ' ' from numbers limit ?
"""


class Rows:
    """Text from a cursor, which notes that it was closed."""

    def __init__(self, connection: sqlite3.Connection, limit: int) -> None:
        self.connection = connection
        self.limit = limit
        self.closed = 0

    def __iter__(self) -> Any:
        cursor = self.connection.execute(NUMBERS, (self.limit,))
        try:
            for (text,) in cursor:
                yield text
        finally:
            cursor.close()
            self.closed += 1

    def have_been_closed(self, times: int) -> bool:
        # Starlette closes no generator. It can leave one in a circle of references, and then the
        # stream ends when that is collected.
        gc.collect()
        return self.closed == times


@asynccontextmanager
async def database(
    server: str,
    limit: int,
    max_waiting: int | None = None,
    queue_timeout: float | None = None,
    **options: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, Worker, Rows]]:
    """A server with two routes that stream rows of a connection."""

    async def response(request: Request) -> Response:
        return TextStreamResponse(
            lambda: worker.stream_iterable(lambda: rows, queue_timeout=queue_timeout), **options
        )

    async def generated(request: Request) -> Response:
        async def text() -> AsyncIterator[str]:
            async with worker.stream_iterable(lambda: rows, max_buffer_size=100) as stream:
                async for each in stream:
                    yield each

        return StreamingResponse(text())

    app = Starlette(routes=[Route("/", response), Route("/generated", generated)])
    async with open_worker(max_waiting=max_waiting) as worker:
        rows = Rows(await worker.run(sqlite3.connect, ":memory:"), limit)
        try:
            async with serving(app, server) as url, client_of(url) as client:
                yield client, worker, rows
        finally:
            await worker.run(rows.connection.close)


@pytest.mark.parametrize("server", SERVERS)
async def test_rows_are_sent_to_their_end(server: str) -> None:
    text = "".join(f"{number} " for number in range(1, 301))
    async with database(server, 300) as (client, worker, rows):
        for path in ("/", "/generated", "/"):
            assert (await client.get(path)).text == text
        assert rows.closed == 3
        assert worker.statistics().total.count == 4
    async with database(server, 2, format="sse") as (client, worker, rows):
        *messages, (kind, _) = events_of((await client.get("/")).text)
        assert "".join(json.loads(data)["text"] for _, data in messages) == "1 2 "
        assert kind == "end"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("path", ["/", "/generated"])
async def test_a_client_that_leaves_stops_its_producer(server: str, path: str) -> None:
    async with database(server, 10**9) as (client, worker, rows):
        for number in (1, 2):
            async with client.stream("GET", path) as response:
                await anext(response.aiter_text())
                assert worker.statistics().running == 1
            await until(lambda number=number: rows.have_been_closed(number))  # type: ignore[misc]
            await until(lambda: not worker.statistics().running)
        assert await worker.run(int) == 0


@pytest.mark.parametrize("server", SERVERS)
async def test_a_turn_that_comes_too_late_is_a_504(server: str) -> None:
    latch = Latch()
    async with database(server, 1, queue_timeout=0.01) as (client, worker, _):
        async with worker.stream_from_thread(latch):
            response = await client.get("/")
            assert response.status_code == 504
            assert "the stream of the worker took too long: queued" in response.text
            latch.let_go()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_full_queue_is_a_503_that_says_when_to_try_again(server: str) -> None:
    latch = Latch()
    async with database(server, 1, max_waiting=0) as (client, worker, _):
        async with worker.stream_from_thread(latch):
            response = await client.get("/")
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert "the worker is busy" in response.text
            latch.let_go()
        await until(lambda: not worker.statistics().running)
        assert (await client.get("/")).text == "1 "
