"""Producers that belong to one thread: SQLite checks in which thread a connection is used."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group

from anystreamer import Emit, Stopping, Worker, open_worker, stream_iterable

from ..helpers.scripted import PATIENCE, until

ROWS = [(number, f"row {number}") for number in range(1_000)]
ENDLESS = """
    with recursive numbers(n) as (select 1 union all select n + 1 from numbers)
    select count(*) from numbers
"""


def connect(path: Path) -> sqlite3.Connection:
    """With the check of the thread, as is the default."""
    connection = sqlite3.connect(path)
    connection.execute("create table if not exists rows (number, text)")
    return connection


async def select(worker: Worker, connection: sqlite3.Connection) -> AsyncGenerator[Any, None]:
    async with worker.stream_iterable(
        lambda: connection.execute("select * from rows order by number")
    ) as rows:
        async for row in rows:
            yield row


async def test_a_connection_is_made_once_and_used_by_many_streams(tmp_path: Path) -> None:
    async with open_worker() as worker:
        connection = await worker.run(connect, tmp_path / "db")
        await worker.run(connection.executemany, "insert into rows values (?, ?)", ROWS)
        # Without the worker it is another thread's.
        with pytest.raises(sqlite3.ProgrammingError, match="same thread"):
            async with stream_iterable(lambda: connection.execute("select 1")) as stream:
                await stream.receive()

        async def read() -> None:
            assert [row async for row in select(worker, connection)] == ROWS

        async with create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(read)
        async with aclosing(select(worker, connection)) as rows:  # left in the middle
            assert await anext(rows) == ROWS[0]
        await read()
        await worker.run(connection.close)


async def test_a_connection_of_a_producer_is_used_by_the_next_one(tmp_path: Path) -> None:
    connections: list[sqlite3.Connection] = []

    def insert(emit: Emit[int], should_stop: Stopping) -> None:
        connections.append(connection := connect(tmp_path / "db"))
        with connection:
            for row in ROWS:
                emit(connection.execute("insert into rows values (?, ?)", row).rowcount)

    def rows() -> Iterator[Any]:
        (connection,) = connections
        try:
            yield from connection.execute("select * from rows")
        finally:
            connection.close()

    async with open_worker() as worker:
        async with worker.stream_from_thread(insert) as stream:
            assert [count async for count in stream] == [1] * len(ROWS)
        async with worker.stream_iterable(rows) as selected:
            assert [row async for row in selected] == ROWS
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            await worker.run(connections[0].execute, "select 1")


@pytest.mark.parametrize("way", ["the caller is cancelled", "the worker closes"])
async def test_a_query_is_interrupted(tmp_path: Path, way: str) -> None:
    began, errors = threading.Event(), []

    def query(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(began.set, 1_000)
        try:
            connection.execute(ENDLESS).fetchone()
        except sqlite3.OperationalError as exc:
            errors.append(str(exc))
            raise
        finally:
            connection.close()

    with anyio.fail_after(PATIENCE):
        async with create_task_group() as tasks:
            async with open_worker() as worker:
                connection = await worker.run(connect, tmp_path / "db")
                scope = CancelScope()

                @tasks.start_soon
                async def ask() -> None:
                    with scope, pytest.raises(Exception, match=r"interrupted|closed"):
                        await worker.run(query, connection, on_stop=connection.interrupt)

                await until(began.is_set)
                if way == "the caller is cancelled":
                    scope.cancel()
                    await until(lambda: errors)
                    assert await worker.run(int) == 0
    assert errors == ["interrupted"]
