"""`stream_iterable`: an iterable is made, iterated and closed in one thread."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio import CancelScope, CapacityLimiter

from anystreamer import Ending, stream_iterable

from ..helpers.logged import logged_by_us
from ..helpers.scripted import PATIENCE, PROGRAM_PATIENCE, rest, until
from ..helpers.ways_out import (
    BodyError,
    WayOut,
    cancelled_before_the_end,
    closed,
    each_way_out,
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


class CannotClose(Cursor):
    def close(self) -> None:
        super().close()
        raise LookupError("it was lost")


class CannotCloseItsIterator(CursorOf):
    def __iter__(self) -> Iterator[int]:
        self.cursors.append(CannotClose(math.inf))
        return self.cursors[-1]


class CannotCloseAtAll(CannotCloseItsIterator):
    def close(self) -> None:
        super().close()
        raise LookupError("it was lost as well")


class ExitsInClose(Cursor):
    """`SystemExit` is not an `Exception`; neither is a panic of Rust."""

    def close(self) -> None:
        super().close()
        raise SystemExit("from close()")


def cannot_clean_up() -> Iterator[int]:
    try:
        yield from itertools.count()
    finally:
        raise LookupError("it was lost")


def goes_on() -> Iterator[int]:
    try:
        yield from itertools.count()
    except GeneratorExit:
        yield -1


class ClosesInALoop(Cursor):
    async def close(self) -> None:  # type: ignore[override]
        raise AssertionError


BAD_ENDS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "iterator": (lambda: CannotClose(math.inf), ["LookupError: it was lost"]),
    "iterator of an iterable": (CannotCloseItsIterator, ["LookupError: it was lost"]),
    "both": (
        CannotCloseAtAll,
        ["LookupError: it was lost", "LookupError: it was lost as well"],
    ),
    "finally": (cannot_clean_up, ["LookupError: it was lost"]),
    "generator that goes on": (goes_on, ["RuntimeError: generator ignored GeneratorExit"]),
    "async close": (lambda: ClosesInALoop(math.inf), ["returned a coroutine"]),
    "not an Exception": (lambda: ExitsInClose(math.inf), ["SystemExit: from close()"]),
}


@pytest.mark.parametrize("kind", BAD_ENDS)
@each_way_out
async def test_an_error_of_close_after_a_stop_is_logged(
    kind: str, way: WayOut, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer has left, or asked for the end, and is not to blame."""
    make, errors = BAD_ENDS[kind]
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_iterable(make, name="counted") as stream:
            assert await stream.receive() == 0
            await way(stream, scope)
    assert stream.ending in (Ending.STOPPED, Ending.CANCELLED)
    messages = logged_by_us(caplog)
    assert len(messages) == len(errors)
    for message, error in zip(messages, errors, strict=True):
        assert message.startswith("counted was stopped, and its close() failed: ")
        assert error in message


async def test_an_error_of_close_after_a_stop_does_not_hide_an_error_of_the_iterable() -> None:
    reached, go = threading.Event(), threading.Event()

    class Interrupted(CannotClose):
        def __next__(self) -> int:
            reached.set()
            assert go.wait(PATIENCE)
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        async with stream_iterable(Interrupted, on_stop=go.set):
            await until(reached.is_set)


async def test_an_async_close_is_an_error_at_the_end() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"close\(\) must do its work when it is called"):
            async with stream_iterable(ClosesInALoop) as stream:
                await rest(stream)
        gc.collect()


async def test_an_iterable_of_others_is_left_open() -> None:
    cursor, other = Cursor(math.inf), CursorOf()
    async with stream_iterable(lambda: cursor, close=False) as stream:
        await stream.receive()
    async with stream_iterable(lambda: other, close=False) as stream:
        await stream.receive()
    assert not cursor.closed
    assert not other.closed
    assert not other.cursors[0].closed


class Wrapper:
    """Passes everything on to a file, as click's `KeepOpenFile` does."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


STANDARD_STREAMS: dict[str, Callable[[], Any]] = {
    "text": lambda: sys.stdin,
    "bytes": lambda: sys.stdin.buffer,
    "raw": lambda: sys.stdin.buffer.raw,  # type: ignore[union-attr]
    "wrapped": lambda: Wrapper(sys.stdin),
    "wrapped bytes": lambda: Wrapper(sys.stdin.buffer),
    "original": lambda: sys.__stdin__,
}


@pytest.mark.parametrize("kind", STANDARD_STREAMS)
async def test_a_standard_stream_is_not_closed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntwo\n", encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "__stdin__" if kind == "original" else "stdin", file)
        async with stream_iterable(STANDARD_STREAMS[kind]) as stream:
            assert "one" in str(await stream.receive())
        assert not file.closed
        assert not file.buffer.closed
        async with stream_iterable(lambda: path.open(encoding="utf-8")) as stream:
            assert await rest(stream) == ["one\n", "two\n"]


def test_a_program_can_go_on_to_read_its_stdin() -> None:
    program = (
        "import anyio, sys\n"
        "from anystreamer import stream_iterable\n"
        "async def main():\n"
        "    async with stream_iterable(lambda: sys.stdin, max_buffer_size=1) as lines:\n"
        "        print(await lines.receive(), end='')\n"
        "anyio.run(main)\n"
        "assert not sys.stdin.closed\n"
        "print(input())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input="one\n" + "more\n" * 100,
        capture_output=True,
        text=True,
        timeout=PROGRAM_PATIENCE,
        check=False,
    )
    assert done.stdout == "one\nmore\n", done.stderr


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
