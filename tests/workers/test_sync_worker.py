"""`anystreamer.sync.open_worker`: a worker without an event loop, for any number of threads."""

from __future__ import annotations

import contextlib
import gc
import inspect
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, cast

import anyio
import pytest
from anyio import to_thread

import anystreamer
from anystreamer import Ending, EngineBusy, EngineClosed, GenerationTimeout, Stopping, sync
from anystreamer.sync import OwnedSyncWorker, SyncThreadStream, SyncWorker, open_worker

from ..helpers.scripted import PATIENCE, PROGRAM_PATIENCE, Latch, Scripted


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def until_waiting(worker: SyncWorker, number: int) -> None:
    until(lambda: (s := worker.statistics()).running and s.waiting == number)


def test_many_threads_use_a_connection_that_belongs_to_one() -> None:
    def insert(number: int) -> None:
        worker.run(connection.execute, "insert into numbers values (?)", (number,))

    def numbers(_: int) -> list[int]:
        query = "select value from numbers order by value"
        with worker.stream_iterable(lambda: connection.execute(query)) as rows:
            assert isinstance(rows, SyncThreadStream)
            return [value for (value,) in rows]

    with open_worker(name="database") as worker, ThreadPoolExecutor(8) as pool:
        assert isinstance(worker, OwnedSyncWorker)
        connection = worker.run(sqlite3.connect, ":memory:")
        worker.run(connection.execute, "create table numbers (value integer)")
        list(pool.map(insert, range(20)))
        assert list(pool.map(numbers, range(20))) == [list(range(20))] * 20
        assert worker.run(threading.get_ident) == worker.run(threading.get_ident)
        worker.run(connection.close)
        statistics = worker.statistics()
        assert (statistics.threads, statistics.running, statistics.waiting) == (1, 0, 0)
        assert statistics.total.count == statistics.queued.count == 45


def test_several_threads_run_as_many_producers_at_once() -> None:
    barrier = threading.Barrier(3)  # which only three at once can pass

    def produce(emit: Any, should_stop: Stopping) -> str:
        emit(barrier.wait(PATIENCE))
        return "all"

    def ask(_: int) -> list[int]:
        with worker.stream_from_thread(produce) as stream:
            items = list(stream)
            assert (stream.result, stream.ending) == ("all", Ending.ENDED)
            return items

    with open_worker(threads=3) as worker, ThreadPoolExecutor(9) as pool:
        items = [item for each in pool.map(ask, range(9)) for item in each]
        assert sorted(items) == sorted([0, 1, 2] * 3)


variable: ContextVar[str] = ContextVar("variable", default="nobody's")


def test_a_function_gives_its_result_or_its_error_and_has_its_callers_context() -> None:
    error = LookupError("no")

    def fail(*args: object) -> None:
        assert args == (1, "a")
        raise error

    with open_worker() as worker:
        assert worker.run(divmod, 7, 2) == (3, 1)
        assert worker.run(lambda: None) is None
        with pytest.raises(LookupError) as raised:
            worker.run(fail, 1, "a")
        assert raised.value is error
        token = variable.set("mine")
        try:
            assert worker.run(variable.get) == "mine"
        finally:
            variable.reset(token)
        refuse: Any = worker
        with pytest.raises(TypeError, match="func must be a plain function"):
            refuse.run(anyio.sleep, 1)
        with pytest.raises(TypeError, match="on_stop must be"):
            refuse.run(int, on_stop=1)
        with pytest.raises(TypeError, match="returned a generator"):
            refuse.run(lambda: (number for number in range(3)))
        with pytest.raises(TypeError, match="queue_timeout must be a number of seconds"):
            refuse.run(int, queue_timeout="1")


def test_the_queue_has_limits_and_a_turn_that_comes_too_late_never_runs() -> None:
    latch, calls = Latch(), list[int]()
    with open_worker(max_waiting=1, name="database") as worker, ThreadPoolExecutor(1) as pool:
        with worker.stream_from_thread(latch):
            with pytest.raises(GenerationTimeout, match="worker 'database' took too long: queued"):
                worker.run(calls.append, 1, queue_timeout=0.01)
            with worker.stream_iterable(lambda: calls, queue_timeout=0.01) as late:
                with pytest.raises(GenerationTimeout) as raised:
                    next(late)
                assert raised.value.phase == "queued"
            waiting = pool.submit(worker.run, calls.append, 2)
            until_waiting(worker, 1)
            with pytest.raises(EngineBusy, match="worker 'database' is busy: 1 "):
                worker.run(int)
            latch.let_go()
            waiting.result(PATIENCE)
    assert calls == [2]
    assert worker.statistics().queued.count == 2
    assert worker.statistics().total.count == 4


@pytest.mark.parametrize("way", ["left", "stopped", "closed elsewhere", "forgotten"])
def test_leaving_a_stream_ends_its_producer_and_the_worker_goes_on(way: str) -> None:
    producer = Scripted()
    with open_worker() as worker:
        stream = worker.stream_from_thread(producer).__enter__()
        assert next(stream) == 0
        match way:
            case "left":
                stream.__exit__(None, None, None)
            case "stopped":
                stream.stop()
                list(stream)
            case "closed elsewhere":
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(stream.close).result(PATIENCE)
            case "forgotten":
                del stream
                gc.collect()
        assert worker.run(int) == 0  # its turn comes after that producer's
        assert producer.has_left


def test_closing_it_ends_what_is_open() -> None:
    began, stopped = threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        assert stopped.wait(PATIENCE)

    opened = open_worker(threads=2)
    with opened as worker, ThreadPoolExecutor(1) as pool:
        stream = worker.stream_from_thread(producer := Scripted()).__enter__()
        assert next(stream) == 0
        blocked = pool.submit(lambda: worker.run(block, on_stop=stopped.set))
        assert began.wait(PATIENCE)
        worker.close()
        with pytest.raises(EngineClosed, match="the worker has been closed"):
            blocked.result(PATIENCE)
        worker.close()
    assert stopped.is_set()
    assert producer.has_left
    with pytest.raises(EngineClosed):
        list(stream)
    stream.close()
    is_closed = pytest.raises(EngineClosed, match="the worker has been closed")
    with is_closed, worker.stream_from_thread(producer):
        pass
    with is_closed:
        worker.run(int)


def test_it_can_be_held_without_a_block_and_closes_when_it_is_forgotten() -> None:
    worker = open_worker().open()
    stream = worker.stream_from_thread(producer := Scripted()).__enter__()
    assert next(stream) == 0
    del worker
    gc.collect()
    until(lambda: producer.has_left)
    with pytest.raises(EngineClosed):
        list(stream)
    with contextlib.suppress(EngineClosed):
        stream.close()


def test_what_cannot_work_says_why() -> None:
    opened: Any = open_worker()
    for use in (
        lambda: opened.run(int),
        lambda: opened.stream_iterable(list),
        lambda: opened.stream_from_thread(Scripted()),
        opened.statistics,
    ):
        with pytest.raises(TypeError, match=r"with open_worker\(\.\.\.\) as worker"):
            use()
    with opened:
        pass
    with pytest.raises(RuntimeError, match=r"this open_worker\(\) has been opened before"):
        opened.open()
    wrongs: list[Any] = [opened, anystreamer.open_worker(), None]
    for wrong in wrongs:
        with pytest.raises(TypeError, match="worker must be an open worker"):
            SyncWorker(wrong)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        open_worker(threads=0)


def test_the_only_thread_of_a_worker_does_not_wait_for_itself() -> None:
    def nested(worker: SyncWorker) -> list[int]:
        assert worker.run(int) == 0
        with worker.stream_iterable(lambda: range(3)) as stream:
            return list(stream)

    with open_worker(name="database") as worker, open_worker(threads=2) as two:
        with pytest.raises(RuntimeError, match="the only thread of the worker 'database'"):
            worker.run(nested, worker)
        with pytest.raises(RuntimeError, match="the only thread"):
            worker.run(worker.stream_iterable(list[int]).__enter__)
        assert two.run(nested, two) == [0, 1, 2]
        assert worker.run(nested, two) == [0, 1, 2]


# -- a worker that is open in an event loop


async def test_a_worker_of_an_event_loop_in_other_threads() -> None:
    latch = Latch("a")

    def route() -> list[str]:
        borrowed = SyncWorker(worker)
        assert borrowed.run(int) == 0
        with borrowed.stream_iterable(lambda: ["one", "two"]) as stream:
            return list(stream)

    def late() -> None:
        SyncWorker(worker).run(int, queue_timeout=0.01)

    async with anystreamer.open_worker() as worker:
        assert [await to_thread.run_sync(route) for _ in range(3)] == [["one", "two"]] * 3
        assert SyncWorker(worker).statistics().total.count == 6
        with pytest.raises(BlockingIOError, match=r"own event loop: .* without anystreamer\.sync"):
            SyncWorker(worker).run(int)
        async with worker.stream_from_thread(latch) as stream:
            assert await stream.receive() == "a"
            with pytest.raises(GenerationTimeout):
                await to_thread.run_sync(late)
            latch.let_go()


async def test_a_worker_whose_block_ends_under_threads_that_wait_for_it() -> None:
    stopped, ended = threading.Event(), list[str]()

    def wait() -> None:
        try:
            SyncWorker(worker).run(stopped.wait, PATIENCE, on_stop=stopped.set)
        except EngineClosed:
            ended.append("closed")

    async with anyio.create_task_group() as tasks:
        async with anystreamer.open_worker() as worker:
            for _ in range(4):  # one runs, three wait
                tasks.start_soon(to_thread.run_sync, wait)
            with anyio.fail_after(PATIENCE):
                while worker.statistics().waiting < 3:
                    await anyio.sleep(0.001)
    assert ended == ["closed"] * 4


# -- processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "printed"),
    [
        ("worker.stream_from_thread(block).__enter__()", ""),
        (
            """
            import _thread, sys, time, traceback
            began = threading.Event()
            def wait():
                began.set()
                stopped.wait()
            def interrupt():
                began.wait()
                while True:  # until the main thread waits for the end, and not for the beginning
                    frame = sys._current_frames()[threading.main_thread().ident]
                    names = [each.name for each in traceback.extract_stack(frame)]
                    if {"__next__", "wait"} <= set(names):
                        break
                    time.sleep(0.001)
                _thread.interrupt_main()
            threading.Thread(target=interrupt).start()
            try:
                worker.run(wait, on_stop=stopped.set)
            except KeyboardInterrupt:
                print("interrupted", stopped.is_set(), worker.run(int))
            """,
            "interrupted True 0\n",
        ),
    ],
    ids=["left open", "interrupted"],
)
def test_a_process_with_an_open_worker_ends_by_itself(body: str, printed: str) -> None:
    program = (
        "import threading\n"
        "from anystreamer.sync import open_worker\n"
        "stopped = threading.Event()\n"
        "def block(emit, should_stop):\n"
        "    should_stop.on_stop(stopped.set)\n"
        "    stopped.wait()\n"
        "worker = open_worker().open()\n"
    ) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PROGRAM_PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


# -- what notebooks and type checkers see


@pytest.mark.parametrize("name", ["stream_from_thread", "stream_iterable", "run", "statistics"])
def test_the_arguments_are_visible(name: str) -> None:
    source = inspect.signature(getattr(anystreamer.Worker, name)).parameters
    assert inspect.signature(getattr(SyncWorker, name)).parameters == source


def test_it_has_all_methods_of_a_worker_and_no_coroutines() -> None:
    assert (
        inspect.signature(open_worker).parameters
        == inspect.signature(anystreamer.open_worker).parameters
    )
    public = {name for name in dir(anystreamer.Worker) if not name.startswith("_")}
    assert public <= set(dir(SyncWorker))
    members: Iterator[Any] = (getattr(OwnedSyncWorker, name) for name in dir(OwnedSyncWorker))
    assert not [member for member in members if inspect.iscoroutinefunction(member)]
    assert cast("Any", sync.open_worker).__signature__.return_annotation == "OwnedSyncWorker"
