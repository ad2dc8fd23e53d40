"""`stream_iterable`: an iterable is made, iterated and closed in one thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from anyio import CancelScope, CapacityLimiter

from anystreamer import stream_iterable

from ..helpers.scripted import rest, until
from ..helpers.ways_out import (
    BodyError,
    cancelled_before_the_end,
    closed,
    leaving,
    raising,
    stopped,
)


class Cursor:
    """An iterable that is its own iterator and has to be closed, in the thread that made it."""

    def __init__(self, length: float = 3, *, fails_at: float = math.inf) -> None:
        self.length = length
        self.fails_at = fails_at
        self.position = 0
        self.threads = [threading.get_ident()]
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        self.threads.append(threading.get_ident())
        return self

    def __next__(self) -> int:
        self.threads.append(threading.get_ident())
        assert not self.closed
        if self.position >= self.fails_at:
            raise ConnectionError("gone")
        if self.position >= self.length:
            raise StopIteration
        self.position += 1
        return self.position - 1

    def close(self) -> None:
        self.threads.append(threading.get_ident())
        self.closed += 1


class CursorOf:
    """An iterable whose iterators are other objects, with a close() of their own."""

    def __init__(self) -> None:
        self.cursors: list[Cursor] = []
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        self.cursors.append(Cursor(math.inf))
        return self.cursors[-1]

    def close(self) -> None:
        assert self.cursors[-1].closed
        self.closed += 1


async def test_an_iterable_is_made_iterated_and_closed_in_one_thread() -> None:
    cursors = []

    def connect() -> Cursor:
        cursors.append(Cursor())
        return cursors[-1]

    async with stream_iterable(connect) as stream:
        assert await rest(stream) == [0, 1, 2]
        assert cursors[0].closed == 1  # before the end is seen
    (thread,) = set(cursors[0].threads)
    assert thread != threading.get_ident()
    assert cursors[0].closed == 1


async def test_an_iterable_that_is_left_early_is_closed_before_the_block_ends() -> None:
    cursors = []

    def connect() -> Cursor:
        cursors.append(Cursor(math.inf))
        return cursors[-1]

    for way in [leaving, raising, cancelled_before_the_end, stopped, closed]:
        try:
            with CancelScope() as scope:
                async with stream_iterable(connect) as stream:
                    assert await stream.receive() == 0
                    await way(stream, scope)
        except BodyError:
            pass
        assert cursors[-1].closed == 1
        assert len(set(cursors[-1].threads)) == 1


async def test_a_generators_finally_runs_in_its_thread() -> None:
    threads = []

    def generate() -> Iterator[int]:
        threads.append(threading.get_ident())
        try:
            yield 0
            yield 1
            yield 2
        finally:
            threads.append(threading.get_ident())

    async with stream_iterable(generate) as stream:
        assert await rest(stream) == [0, 1, 2]
    async with stream_iterable(generate) as stream:
        assert await stream.receive() == 0
    assert len(threads) == 4
    assert threads[0] == threads[1]
    assert threads[2] == threads[3]
    assert threading.get_ident() not in threads


async def test_an_iterator_and_its_iterable_are_both_closed() -> None:
    iterable = CursorOf()
    async with stream_iterable(lambda: iterable) as stream:
        assert await stream.receive() == 0
    assert iterable.closed == 1
    assert [cursor.closed for cursor in iterable.cursors] == [1]


async def test_an_iterable_that_fails_is_closed_and_its_error_arrives() -> None:
    cursor = Cursor(fails_at=2)
    received: list[Any] = []
    with pytest.raises(ConnectionError, match="gone"):
        async with stream_iterable(lambda: cursor) as stream:
            async for item in stream:
                received.append(item)
    assert received == [0, 1]
    assert cursor.closed == 1


async def test_an_iterable_that_cannot_be_made_raises_its_own_error() -> None:
    error = ConnectionError()

    def connect() -> Cursor:
        raise error

    with pytest.raises(ConnectionError) as caught:
        async with stream_iterable(connect) as stream:
            await rest(stream)
    assert caught.value is error


async def test_a_stop_iteration_from_making_the_iterable_is_not_an_end() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with stream_iterable(lambda: next(iter(list[list[int]]()))) as stream:
            await rest(stream)


async def test_an_object_that_cannot_be_iterated_is_still_closed() -> None:
    class Broken(Cursor):
        def __iter__(self) -> Iterator[int]:
            raise LookupError

    cursor = Broken()
    with pytest.raises(LookupError):
        async with stream_iterable(lambda: cursor) as stream:
            await rest(stream)
    assert cursor.closed == 1

    with pytest.raises(TypeError, match="not iterable"):
        async with stream_iterable(lambda: 1) as stream:  # type: ignore[arg-type, return-value]
            await rest(stream)


async def test_an_error_of_close_arrives_and_takes_the_first_one_along() -> None:
    class Broken(Cursor):
        def close(self) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        async with stream_iterable(lambda: Broken()) as stream:
            assert await rest(stream) == [0, 1, 2]
    with pytest.raises(LookupError) as caught:
        async with stream_iterable(lambda: Broken(fails_at=0)) as stream:
            await rest(stream)
    assert isinstance(caught.value.__context__, ConnectionError)
    with pytest.raises(LookupError):
        async with stream_iterable(lambda: Broken(math.inf)) as stream:
            await stream.receive()


async def test_plain_iterables_need_no_close() -> None:
    for make in (
        lambda: [1, 2],
        lambda: range(1, 3),
        lambda: {1: "a", 2: "b"},
        lambda: iter((1, 2)),
    ):
        async with stream_iterable(make) as stream:
            assert await rest(stream) == [1, 2]


async def test_an_iterable_is_bounded_and_queued_like_any_producer() -> None:
    limiter = CapacityLimiter(1)
    cursor = Cursor(math.inf)
    async with stream_iterable(lambda: cursor, max_buffer_size=2, limiter=limiter) as stream:
        await until(lambda: cursor.position == 2)
        assert limiter.statistics().borrowed_tokens == 1
        assert await stream.receive() == 0
    assert cursor.position <= 4
