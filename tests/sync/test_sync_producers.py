"""`anystreamer.sync.stream_from_thread` and `stream_iterable`: producers without an event loop."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import inspect
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter, to_thread

import anystreamer
from anystreamer import Emit, Ending, GenerationStopped, Stopping, sync
from anystreamer.sync import SyncThreadStream, stream_from_thread, stream_iterable

from ..helpers.inside import async_stream_of, is_receiving, state_of, worker_left
from ..helpers.logged import logged_by_us
from ..helpers.scripted import PATIENCE, PROGRAM_PATIENCE, Scripted


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Blocked:
    """A producer that blocks after its first item, until its callback is called."""

    def __init__(self) -> None:
        self.calls = 0
        self.has_returned = False
        self._called = threading.Event()

    def __call__(self, emit: Any, stopping: Any) -> str:
        emit("item")
        assert self._called.wait(PATIENCE)
        self.has_returned = True
        return "interrupted"

    def on_stop(self) -> None:
        assert not self.has_returned
        self.calls += 1
        self._called.set()


def test_a_for_loop_gets_the_items_as_they_are_made() -> None:
    producer = Scripted(3, allowed=1, result="all")
    with stream_from_thread(producer) as stream:
        assert isinstance(stream, SyncThreadStream)
        items = iter(stream)
        assert next(items) == 0
        assert (stream.result, stream.ending) == (None, None)
        producer.allow()
        assert list(items) == [1, 2]
        assert (stream.result, stream.ending) == ("all", Ending.ENDED)
    assert producer.thread != threading.get_ident()
    assert (stream.result, stream.ending) == ("all", Ending.ENDED)


def test_an_iterable_is_made_iterated_and_closed_in_one_thread() -> None:
    threads = []

    def rows() -> Generator[int, None, str]:
        threads.append(threading.get_ident())
        try:
            yield from range(length)
            return "the last"
        finally:
            threads.append(threading.get_ident())

    length = 2
    with stream_iterable(rows) as stream:
        assert list(stream) == [0, 1]
    assert (stream.result, stream.ending) == ("the last", Ending.ENDED)
    length = 10**9
    with stream_iterable(rows) as stream:
        assert next(stream) == 0
    assert (stream.result, stream.ending) == (None, Ending.CANCELLED)
    assert threads[0] == threads[1] != threading.get_ident()
    assert threads[2] == threads[3] != threading.get_ident()


def test_an_iterable_of_others_is_left_open() -> None:
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        cursor = connection.execute("select 1 union all select 2")
        with stream_iterable(lambda: cursor, close=False, max_buffer_size=1) as stream:
            assert next(stream) == (1,)
        cursor.execute("select 3")
        with stream_iterable(lambda: cursor) as stream:
            assert list(stream) == [(3,)]
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            cursor.execute("select 4")


def test_emit_many_and_offer() -> None:
    offered: list[bool] = []

    def produce(emit: Emit[int], should_stop: Stopping) -> None:
        emit.many(range(10))
        while emit.offer(10):
            offered.append(True)
        offered.append(False)

    with stream_from_thread(produce, max_buffer_size=4) as stream:
        assert [next(stream) for _ in range(11)] == list(range(11))
    assert offered[-1] is False
    assert len(offered) < 20
    assert stream.ending is Ending.CANCELLED


def test_receive_many_takes_all_that_is_ready() -> None:
    producer = Scripted(10, allowed=4, fails={9: ValueError("no")})
    with stream_from_thread(producer) as stream:
        until(lambda: producer.steps == 4)
        received = stream.receive_many(3)
        assert received == list(range(len(received)))
        assert 1 <= len(received) <= 3
        while len(received) < 4:
            received += stream.receive_many()
        producer.allow()
        until(lambda: producer.has_left)
        assert received + stream.receive_many() == list(range(9))
        with pytest.raises(ValueError, match="no"):
            stream.receive_many()
        for wrong in (0, "1"):
            with pytest.raises((TypeError, ValueError), match="max_items"):
                stream.receive_many(wrong)  # type: ignore[arg-type]
    with stream_iterable(lambda: [1, 2]) as few:
        received = []
        while items := few.receive_many():
            received += items
        assert received == [1, 2]
        assert (few.receive_many(), few.ending) == ([], Ending.ENDED)
        few.close()
        assert few.receive_many() == []


@pytest.mark.parametrize("way", ["left", "raised", "stopped", "closed elsewhere", "forgotten"])
def test_a_callback_ends_what_blocks_in_any_way_to_stop(way: str) -> None:
    producer = Blocked()
    stream = stream_from_thread(producer, on_stop=producer.on_stop).__enter__()
    assert next(stream) == "item"
    match way:
        case "left":
            stream.__exit__(None, None, None)
        case "raised":
            stream.__exit__(LookupError, LookupError(), None)
        case "stopped":
            stream.stop()
            assert list(stream) == []
        case "closed elsewhere":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(stream.close).result(PATIENCE)
        case "forgotten":
            del stream
            gc.collect()
            until(lambda: producer.has_returned)
    assert producer.has_returned
    assert producer.calls == 1
    if way != "forgotten":
        expected = Ending.STOPPED if way == "stopped" else Ending.CANCELLED
        assert (stream.result, stream.ending) == ("interrupted", expected)
        stream.close()


def test_a_callback_from_inside() -> None:
    interrupted = threading.Event()

    def produce(emit: Emit[str], should_stop: Stopping) -> None:
        should_stop.on_stop(interrupted.set)
        emit("item")
        assert interrupted.wait(PATIENCE)

    with stream_from_thread(produce) as stream:
        assert next(stream) == "item"
    assert interrupted.is_set()


def test_a_producer_that_does_not_ask_is_ended_by_emit() -> None:
    producer = Scripted(asks=False)
    with stream_from_thread(producer) as stream:
        assert next(stream) == 0
    assert isinstance(producer.unwound_by, GenerationStopped)
    assert stream.ending is Ending.CANCELLED


def test_back_pressure() -> None:
    producer = Scripted()
    with stream_from_thread(producer, max_buffer_size=2) as stream:
        until(lambda: producer.steps >= 2)
        assert [next(stream) for _ in range(10)] == list(range(10))
        assert producer.steps <= 13


def test_a_limiter_is_shared_by_all_threads() -> None:
    limiter = CapacityLimiter(2)  # made where no event loop runs
    running = most = 0
    lock = threading.Lock()

    def produce(emit: Emit[int], should_stop: Stopping) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        for number in range(5):
            emit(number)
        with lock:
            running -= 1

    def read(_: int) -> list[int]:
        with stream_from_thread(produce, limiter=limiter) as stream:
            return list(stream)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(40))) == [list(range(5))] * 40
    assert most <= 2


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_of_the_producer_arrives_after_the_items(error: BaseException) -> None:
    items = []
    with pytest.raises(type(error)) as caught:
        with stream_from_thread(Scripted(fails={2: error})) as stream:
            for item in stream:
                items.append(item)
    assert caught.value is error
    assert items == [0, 1]
    assert stream.ending is Ending.FAILED


def test_an_error_that_nobody_has_seen_is_raised_at_the_blocks_end() -> None:
    error = ValueError()
    producer = Scripted(fails={0: error})
    with pytest.raises(ValueError) as caught, stream_from_thread(producer):  # noqa: PT011
        until(lambda: producer.has_left)
    assert caught.value is error


def test_the_bodys_error_wins_and_the_note_names_the_producer() -> None:
    producer = Scripted(fails={0: OSError("no memory")})
    with pytest.raises(LookupError) as caught, stream_from_thread(producer, name="export"):
        until(lambda: producer.has_left)
        raise LookupError
    (note,) = caught.value.__notes__
    assert note == "The worker of export failed as well: OSError: no memory"


def test_an_error_of_close_after_a_stop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def rows() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            raise LookupError("it was lost")

    with stream_iterable(rows, name="export") as stream:
        assert next(stream) == 0
    assert stream.ending is Ending.CANCELLED
    (message,) = logged_by_us(caplog)
    assert message == "export was stopped, and its close() failed: LookupError: it was lost"


async def coroutine(*args: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_what_does_not_block_is_refused(opener: Any) -> None:
    with pytest.raises(TypeError, match="async function"):
        opener(coroutine)
    with pytest.raises(TypeError, match="on_stop must be"):
        opener(lambda *_: [], on_stop=coroutine)
    with pytest.raises(TypeError, match="returned"), opener(lambda *_: coroutine()) as stream:
        list(stream)
    gc.collect()


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_an_unopened_one_says_how_to_open_it(opener: Any) -> None:
    for use in (iter, next, lambda stream: stream.result, lambda stream: stream.ending):
        with pytest.raises(TypeError, match=f"with {opener.__name__}"):
            use(opener(lambda *_: []))


def test_it_is_opened_once() -> None:
    stream = stream_iterable(lambda: [1])
    with stream:
        pass
    with pytest.raises(RuntimeError, match="opened before"):
        stream.__enter__()


def test_opened_in_one_thread_advanced_and_closed_in_others() -> None:
    producer = Scripted()
    stream = stream_from_thread(producer)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(stream.__enter__).result()
        assert second.submit(next, stream).result() == 0
        assert next(stream) == 1
        first.submit(stream.close).result()
    assert producer.has_left


def test_closing_it_ends_a_next_in_another_thread() -> None:
    producer = Scripted(allowed=1)
    stream = stream_from_thread(producer).__enter__()
    assert next(stream) == 0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: list(stream))
        until(lambda: is_receiving(async_stream_of(stream)))
        stream.close()
        assert waiting.result(PATIENCE) == []
    assert producer.has_left


def test_a_generator_that_is_dropped_half_way_stops_its_producer() -> None:
    producer = Scripted()

    def numbers() -> Any:
        with stream_from_thread(producer) as stream:
            yield from stream

    items = numbers()
    assert next(items) == 0
    items.close()
    assert producer.has_left


def test_a_stop_before_the_turn_starts_nothing() -> None:
    limiter = CapacityLimiter(1)
    first, second = Scripted(allowed=1), Scripted()
    with stream_from_thread(first, limiter=limiter) as running:
        assert next(running) == 0
        with stream_from_thread(second, limiter=limiter) as queued:
            queued.stop()
            assert list(queued) == []
            assert queued.ending is Ending.STOPPED
    assert not second.entered


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_the_producer_has_the_context_variables_of_its_caller() -> None:
    token = variable.set("mine")
    try:
        with stream_iterable(lambda: [variable.get()]) as stream:
            assert list(stream) == ["mine"]
    finally:
        variable.reset(token)


def test_streams_within_a_producer() -> None:
    def outer() -> Iterator[int]:
        with stream_iterable(lambda: range(3)) as inner:
            yield from inner

    with stream_iterable(outer) as stream:
        assert list(stream) == [0, 1, 2]


async def test_it_works_in_a_thread_of_a_running_loops_pool() -> None:
    def work() -> list[int]:
        with stream_iterable(lambda: range(3)) as stream:
            return list(stream)

    with anyio.fail_after(PATIENCE):
        assert await to_thread.run_sync(work) == [0, 1, 2]


def test_the_statistics_count_it() -> None:
    before = anystreamer.statistics()
    producer = Scripted(allowed=1)
    with stream_from_thread(producer) as stream:
        assert next(stream) == 0
        assert anystreamer.statistics().running == before.running + 1
    assert anystreamer.statistics() == before


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_it_can_be_given_a_name(opener: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="anystreamer")
    with opener(lambda *_: [], name="the nightly export") as stream:
        assert list(stream) == []
    ours = logged_by_us(caplog, logging.DEBUG)
    assert len(ours) == 3
    assert all(message.startswith("the nightly export #") for message in ours)


def test_its_thread_has_its_name() -> None:
    def produce(emit: Any, should_stop: Any) -> None:
        emit(threading.current_thread().name)

    with stream_from_thread(produce, name="export") as stream:
        number = state_of(async_stream_of(stream)).number
        assert next(stream) == f"export #{number}"


def test_nothing_of_a_forgotten_stream_stays() -> None:
    producer = Scripted()
    stream = stream_from_thread(producer).__enter__()
    assert next(stream) == 0
    under = async_stream_of(stream)
    del stream
    gc.collect()
    until(lambda: worker_left(under))
    assert producer.has_left


@pytest.mark.parametrize("name", ["stream_from_thread", "stream_iterable"])
def test_the_arguments_are_visible(name: str) -> None:
    source = inspect.signature(getattr(anystreamer, name))
    assert inspect.signature(getattr(sync, name)).parameters == source.parameters


def test_it_has_all_attributes_and_no_coroutines() -> None:
    properties = inspect.getmembers(
        anystreamer.ThreadStream, lambda value: isinstance(value, property)
    )
    attributes = {name for name, _ in properties if not name.startswith("_")}
    assert {"result", "ending"} <= attributes - {"extra_attributes"} <= set(dir(SyncThreadStream))
    members = [getattr(SyncThreadStream, name) for name in dir(SyncThreadStream)]
    assert not [member for member in members if inspect.iscoroutinefunction(member)]


@pytest.mark.slow
def test_a_process_with_an_open_stream_ends_by_itself() -> None:
    program = (
        "import threading\n"
        "from anystreamer.sync import stream_from_thread\n"
        "def produce(emit, stopping):\n"
        "    stopped = threading.Event()\n"
        "    stopping.on_stop(stopped.set)\n"
        "    emit('item')\n"
        "    stopped.wait()\n"
        "stream = stream_from_thread(produce).__enter__()\n"
        "print(next(stream), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PROGRAM_PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "item\n", "")
