"""Callbacks at a stop, and producers whose work is done by other threads or by code in C."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from anyio import CancelScope

from anystreamer import GenerationStopped, stream_from_thread, stream_iterable

from ..helpers.logged import logged_by_us
from ..helpers.scripted import PATIENCE, until
from ..helpers.ways_out import (
    BodyError,
    WayOut,
    closed,
    each_of,
    each_way_out,
    leaving,
    raising,
    stopped_and_left,
)


class Blocked:
    """A producer that blocks until its callback is called."""

    def __init__(self, *, registers: bool) -> None:
        self.registers = registers  # from inside
        self.calls: list[int] = []
        self.returned = False
        self._called = threading.Event()

    def __call__(self, emit: Any, stopping: Any) -> None:
        if self.registers:
            stopping.on_stop(self.on_stop)
        emit("item")
        assert self._called.wait(PATIENCE)
        self.returned = True

    def on_stop(self) -> None:
        assert not self.returned
        self.calls.append(threading.get_ident())
        self._called.set()


@pytest.mark.parametrize("registers", [False, True], ids=["argument", "from inside"])
@each_way_out
async def test_a_callback_is_called_once_in_any_way_to_stop(way: WayOut, registers: bool) -> None:
    producer = Blocked(registers=registers)
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(
            producer, on_stop=None if registers else producer.on_stop
        ) as stream:
            assert await stream.receive() == "item"
            await way(stream, scope)
    assert producer.returned
    assert len(producer.calls) == 1


@each_way_out
async def test_a_callback_is_called_for_a_shielded_consumer_too(way: WayOut) -> None:
    producer = Blocked(registers=True)
    with CancelScope() as scope:
        async with stream_from_thread(producer) as stream:
            assert await stream.receive() == "item"
            with CancelScope(shield=True):
                scope.cancel()
                await until(lambda: producer.returned)
    assert len(producer.calls) == 1


async def test_a_callback_that_comes_after_the_stop_is_called_at_once() -> None:
    calls = []

    def produce(emit: Any, stopping: Any) -> None:
        emit("item")
        deadline = time.monotonic() + PATIENCE
        while not stopping() and time.monotonic() < deadline:
            time.sleep(0.001)
        stopping.on_stop(lambda: calls.append(threading.get_ident() == producer_thread[0]))
        assert calls == [True]

    producer_thread: list[int] = []

    def noted(emit: Any, stopping: Any) -> None:
        producer_thread.append(threading.get_ident())
        produce(emit, stopping)

    async with stream_from_thread(noted) as stream:
        await stream.receive()
    assert calls == [True]


async def test_no_callback_is_called_after_the_producer_has_returned() -> None:
    calls: list[str] = []
    async with stream_iterable(lambda: range(3), on_stop=lambda: calls.append("late")) as stream:
        assert [item async for item in stream] == [0, 1, 2]
        stream.stop()
        await stream.aclose()
    assert not calls


async def test_a_producer_is_not_joined_before_a_callback_has_returned() -> None:
    order = []
    began, go = threading.Event(), threading.Event()

    def callback() -> None:
        began.set()
        assert go.wait(PATIENCE)
        order.append("callback")

    def produce(emit: Any, stopping: Any) -> None:
        stopping.on_stop(callback)
        emit("item")
        assert began.wait(PATIENCE)
        threading.Timer(0.05, go.set).start()

    async with stream_from_thread(produce) as stream:
        await stream.receive()
        thread = threading.Thread(target=stream.stop)
        thread.start()
        await until(began.is_set)
    order.append("joined")
    thread.join()
    assert order == ["callback", "joined"]


class NotAnException(BaseException):
    """As `pytest.fail`, a panic of Rust, or a cancellation, it is not an `Exception`."""


@each_way_out
async def test_a_callback_that_raises_ends_nothing(
    way: WayOut, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise errors.pop()

    for error in (ValueError, SystemExit, GeneratorExit, NotAnException):
        producer, errors = Blocked(registers=True), [error("from a callback")]
        caplog.clear()
        with CancelScope() as scope, contextlib.suppress(BodyError):
            async with stream_from_thread(producer, on_stop=fails) as stream:
                await stream.receive()
                await way(stream, scope)
        assert producer.returned  # so the callback after that one was called
        assert ["from a callback" in each for each in logged_by_us(caplog)] == [True]


@each_of(leaving, raising, closed)
async def test_a_ctrl_c_in_a_callback_is_raised_after_the_join(way: WayOut) -> None:
    def fails() -> None:
        raise KeyboardInterrupt

    producer = Blocked(registers=True)
    with pytest.raises(KeyboardInterrupt), CancelScope() as scope:
        async with stream_from_thread(producer, on_stop=fails) as stream:
            await stream.receive()
            await way(stream, scope)
    assert producer.returned


async def test_a_callback_can_emit_a_last_item(caplog: pytest.LogCaptureFixture) -> None:
    """What `emit` raises after a stop is for the producer, and not for who stops."""
    raised: list[BaseException] = []

    def produce(emit: Any, stopping: Any) -> None:
        stopping.on_stop(lambda: emit("last"))
        emit("first")
        while not stopping():
            time.sleep(0.0002)

    def stop() -> None:
        try:
            stream.stop()
        except BaseException as exc:
            raised.append(exc)

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == "first"
        thread = threading.Thread(target=stop)
        thread.start()
        assert [item async for item in stream] == ["last"]
        await until(lambda: not thread.is_alive())
    assert not raised
    assert not logged_by_us(caplog)


def test_what_is_no_function_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="on_stop must be a callable"):
        stream_from_thread(lambda emit, stopping: None, on_stop=1)  # type: ignore[call-overload]


# -- real producers


# SQLite interrupts only what runs, so it says so itself. It finds no row, ever.
ENDLESS = (
    "with recursive n(i) as (select report() union all select 1 from n) select i from n where i < 0"
)


def silent_query(emit: Any, stopping: Any) -> None:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.create_function("report", 0, lambda: emit("running"))
    stopping.on_stop(connection.interrupt)
    with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
        connection.execute(ENDLESS).fetchall()


def silent_process(emit: Any, stopping: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        stopping.on_stop(process.kill)
        emit("running")
        assert process.stdout is not None
        process.stdout.read()


def silent_socket(emit: Any, stopping: Any) -> None:
    one, other = socket.socketpair()
    with one, other:
        stopping.on_stop(lambda: one.shutdown(socket.SHUT_RDWR))
        emit("running")
        one.recv(1)


@pytest.mark.parametrize("produce", [silent_query, silent_process, silent_socket])
@each_way_out
async def test_what_blocks_in_c_is_joined(produce: Any, way: WayOut) -> None:
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(produce) as stream:
            assert await stream.receive() == "running"
            await way(stream, scope)


# -- callbacks


@each_of(stopped_and_left)
async def test_a_thread_of_an_engine_ends_at_its_next_call(way: WayOut) -> None:
    """It catches what its callback raises, as watchdog and tokenizers do, but no BaseException."""
    calls = 0

    def produce(emit: Any, stopping: Any) -> None:
        def engine() -> None:
            nonlocal calls
            with contextlib.suppress(GenerationStopped):
                for number in range(10**9):
                    calls += 1
                    with contextlib.suppress(Exception):
                        emit(number)

        thread = threading.Thread(target=engine)
        thread.start()
        thread.join()

    with CancelScope() as scope:
        async with stream_from_thread(produce, max_buffer_size=3) as stream:
            assert [await stream.receive() for _ in range(5)] == list(range(5))
            await way(stream, scope)
    assert calls < 20


async def test_a_callback_from_c_is_told_that_its_item_was_not_taken() -> None:
    offered = 0
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def produce(emit: Any, stopping: Any) -> None:
        nonlocal offered
        refused = False

        def compare(one: int, other: int) -> int:
            nonlocal offered, refused
            offered += 1
            refused = not emit.offer(offered)
            return 0

        numbers = (ctypes.c_int * 64)()
        while not refused:
            ctypes.CDLL(None).qsort(numbers, 64, ctypes.sizeof(ctypes.c_int), kind(compare))

    async with stream_from_thread(produce, max_buffer_size=2) as stream:
        assert await stream.receive() == 1
    assert offered


async def test_many_items_cross_at_once() -> None:
    def produce(emit: Any, stopping: Any) -> None:
        emit.many(range(1000))
        emit.many([])

    async with stream_from_thread(produce) as stream:
        assert [item async for item in stream] == list(range(1000))
