"""A worker: its threads, its queue, its streams, its end. With producers that a test controls."""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import threading
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast
from weakref import ref

import anyio
import pytest
from anyio import CancelScope, EndOfStream, create_task_group

from anystreamer import (
    Emit,
    Ending,
    EngineBusy,
    EngineClosed,
    EngineDied,
    GenerationTimeout,
    Stopping,
    Worker,
    open_worker,
    stream_from_thread,
)
from anystreamer._workers import WorkThreads

from ..helpers.inside import state_of
from ..helpers.scripted import PATIENCE, Latch, Scripted, rest, until
from ..helpers.ways_out import (
    BodyError,
    WayOut,
    cancelled_from_outside,
    closed,
    each_of,
    each_way_out,
    leaving,
    stopped,
)

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")


class Blocked:
    """A producer that emits one item and blocks, until its callback is called."""

    def __init__(self) -> None:
        self.calls = 0
        self.returned = False
        self._called = threading.Event()

    def __call__(self, emit: Any, should_stop: Stopping) -> None:
        should_stop.on_stop(self.on_stop)
        emit("item")
        assert self._called.wait(PATIENCE)
        self.returned = True

    def on_stop(self) -> None:
        assert not self.returned
        self.calls += 1
        self._called.set()


async def read(worker: Worker, producer: Any, **options: Any) -> list[Any]:
    async with worker.stream_from_thread(producer, **options) as stream:
        return await rest(stream)


async def wait_turn(worker: Worker) -> None:
    assert await worker.run(int) == 0


async def until_waiting(worker: Worker, number: int) -> None:
    """Wait until some run, and so many wait."""
    await until(lambda: (s := worker.statistics()).running and s.waiting == number)


# -- threads


async def test_all_producers_of_a_worker_run_in_one_thread() -> None:
    threads = []

    def note() -> int:
        threads.append(threading.get_ident())
        return 1

    def iterate() -> Iterator[int]:
        try:
            yield note()
        finally:
            note()

    async with open_worker() as worker:
        for _ in range(5):
            assert await worker.run(note) == 1
            await read(worker, lambda emit, should_stop: note())
            async with worker.stream_iterable(iterate) as stream:
                assert await rest(stream) == [1]
            # Threads that a pool would have taken in turn.
            async with create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(anyio.to_thread.run_sync, threading.Event().is_set)
    assert len(threads) == 20
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_several_threads_run_as_many_producers_at_once_and_no_more() -> None:
    barrier = threading.Barrier(3)  # which only three at once can pass
    threads = set()

    def produce(emit: Any, should_stop: Stopping) -> None:
        threads.add(threading.get_ident())
        assert barrier.wait(PATIENCE) in range(3)
        emit(worker.statistics().running)

    items: list[int] = []

    async def ask() -> None:
        items.extend(await read(worker, produce))

    async with open_worker(threads=3) as worker:
        assert worker.statistics().threads == 3
        async with create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(ask)
    assert len(items) == 9
    assert max(items) <= 3
    assert len(threads) == 3


variable: ContextVar[str] = ContextVar("variable", default="nobody's")


async def test_each_producer_runs_in_its_callers_context_variables() -> None:
    def produce(emit: Any, should_stop: Stopping) -> None:
        emit(variable.get())
        variable.set("the producer's")  # nobody else's
        with pytest.raises(RuntimeError):  # as in any thread
            anyio.lowlevel.current_token()
        anyio.run(anyio.sleep, 0)

    async def ask(name: str) -> None:
        variable.set(name)
        assert await read(worker, produce) == [name]
        assert await worker.run(variable.get) == name
        assert variable.get() == name

    async with open_worker() as worker, create_task_group() as tasks:
        for name in ("one", "two", "three"):
            tasks.start_soon(ask, name)


# -- the queue


async def test_first_come_first_served_and_never_two_at_once() -> None:
    latch, order = Latch(), list[int]()

    async def ask(number: int) -> None:
        await worker.run(order.append, number)

    async with open_worker() as worker, create_task_group() as tasks:
        async with worker.stream_from_thread(latch):
            for number in range(10):
                tasks.start_soon(ask, number)
                await until_waiting(worker, number + 1)
            assert not order
            latch.let_go()
    assert order == list(range(10))


async def test_the_queue_has_a_limit_and_says_so() -> None:
    latch = Latch()
    async with open_worker(max_waiting=2, name="database") as worker, create_task_group() as tasks:
        async with worker.stream_from_thread(latch):
            for number in range(2):
                tasks.start_soon(wait_turn, worker)
                await until_waiting(worker, number + 1)
            for refused in (worker.run(int), read(worker, latch)):
                with pytest.raises(EngineBusy, match="worker 'database' is busy: 2 ") as raised:
                    await refused
                assert raised.value.waiting == 2
                assert raised.value.retry_after is None  # no turn has ended
            latch.let_go()
        await until(lambda: worker.statistics().total.count == 3)
        assert await worker.run(int) == 0


async def test_none_waits_where_none_can() -> None:
    latch = Latch(1)
    async with open_worker(max_waiting=0) as worker:
        assert await worker.run(int) == 0
        async with worker.stream_from_thread(latch) as stream:
            with pytest.raises(EngineBusy) as raised:
                await worker.run(int)
            assert raised.value.retry_after is not None
            latch.let_go()
            assert await rest(stream) == [1]
        assert await worker.run(int) == 0


async def test_a_turn_that_comes_too_late_never_runs() -> None:
    latch, producer, calls = Latch("a"), Scripted(), list[int]()
    async with open_worker(name="database") as worker:
        async with worker.stream_from_thread(latch) as first, create_task_group() as tasks:
            async with worker.stream_from_thread(producer, queue_timeout=0.01) as stream:
                with pytest.raises(GenerationTimeout) as raised:
                    await stream.receive()
                assert raised.value.phase == "queued"
                assert "stream of the worker 'database' took too long" in str(raised.value)
                assert stream.ending is Ending.FAILED
            with pytest.raises(GenerationTimeout):  # where nobody has read it
                async with worker.stream_iterable(lambda: calls, queue_timeout=0.01) as unread:
                    await state_of(unread).worker_exited.wait()
            with pytest.raises(GenerationTimeout):
                await worker.run(calls.append, 1, queue_timeout=0.01)
            assert (worker.statistics().running, worker.statistics().waiting) == (1, 0)
            tasks.start_soon(wait_turn, worker)  # those that gave up are in nobody's way
            await until_waiting(worker, 1)
            latch.let_go()
            assert await rest(first) == ["a"]
        assert await worker.run(divmod, 7, 2, queue_timeout=PATIENCE) == (3, 1)
        statistics = worker.statistics()
    assert not producer.entered
    assert not calls
    assert (statistics.queued.count, statistics.total.count) == (3, 6)


@each_of(cancelled_from_outside, closed, stopped, leaving)
async def test_what_leaves_while_it_waits_never_runs(way: WayOut) -> None:
    latch, producer = Latch("a"), Scripted()
    async with open_worker() as worker:
        async with worker.stream_from_thread(latch) as first:
            with CancelScope() as scope:
                async with worker.stream_from_thread(producer) as second:
                    await way(second, scope)
            await until(lambda: not worker.statistics().waiting)
            latch.let_go()
            assert await rest(first) == ["a"]
        assert await worker.run(int) == 0
    assert not producer.entered


async def test_what_is_stopped_on_its_way_to_the_thread_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = WorkThreads.call

    async def call_after_stop(threads: WorkThreads, *args: Any) -> None:
        stream.stop()
        await call(threads, *args)

    latch, producer = Latch(), Scripted()
    async with open_worker() as worker:
        async with worker.stream_from_thread(latch):
            async with worker.stream_from_thread(producer) as stream:
                await until_waiting(worker, 1)
                monkeypatch.setattr(WorkThreads, "call", call_after_stop)
                latch.let_go()
                assert await rest(stream) == []
    assert not producer.entered


async def test_a_bounded_stream_holds_its_producer_unless_another_stream_waits() -> None:
    producer = Scripted(1_000)
    async with open_worker() as worker:
        async with worker.stream_from_thread(producer, max_buffer_size=2) as held:
            await until(lambda: producer.steps == 2)
            assert await held.receive() == 0
            await until(lambda: producer.steps == 3)
            assert await worker.run(int) == 0  # or nested streams would wait for each other
            assert await rest(held) == list(range(1, 1_000))


# -- errors


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
async def test_an_error_arrives_after_the_items_and_the_next_stream_is_served(kind: Any) -> None:
    async with open_worker() as worker:
        thread = await worker.run(threading.get_ident)
        for _ in range(3):
            error = kind("no")
            async with worker.stream_from_thread(Scripted(fails={2: error})) as stream:
                assert [await stream.receive(), await stream.receive()] == [0, 1]
                with pytest.raises(kind) as raised:
                    await stream.receive()
            assert raised.value is error
        assert await worker.run(threading.get_ident) == thread


async def test_an_error_that_was_not_received_is_raised_at_the_end_of_the_block() -> None:
    error = ValueError("no")
    async with open_worker() as worker:
        with pytest.raises(ValueError, match="no") as raised:
            async with worker.stream_from_thread(Scripted(fails={0: error})) as stream:
                await until(lambda: state_of(stream).has_exited)
        assert raised.value is error


async def test_the_error_of_the_body_comes_out_bare() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as raised:
        async with open_worker() as worker:
            async with worker.stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
                await until(lambda: state_of(stream).has_exited)
                raise error
    assert raised.value is error
    assert "failed as well" in error.__notes__[0]


def test_what_cannot_work_is_refused_at_once() -> None:
    for threads in (0, -1):
        with pytest.raises(ValueError, match="threads must be at least 1"):
            open_worker(threads=threads)
    for wrong in (None, 1.5, True, "1"):
        with pytest.raises(TypeError, match="threads must be a whole number"):
            open_worker(threads=cast("Any", wrong))
    with pytest.raises(ValueError, match="max_waiting"):
        open_worker(max_waiting=-1)
    with pytest.raises(TypeError, match="max_waiting"):
        open_worker(max_waiting=cast("Any", 1.5))
    with pytest.raises(TypeError, match="name must be a str"):
        open_worker(name=cast("Any", 1))


async def test_what_cannot_be_streamed_is_refused_as_without_a_worker() -> None:
    async def produce(emit: Any, should_stop: Any) -> None: ...

    async with open_worker() as worker:
        refuse: Any = worker
        with pytest.raises(TypeError, match="produce must be a blocking function"):
            refuse.stream_from_thread(produce)
        with pytest.raises(TypeError, match="make_iterable must be"):
            refuse.stream_iterable([1, 2])
        with pytest.raises(ValueError, match="max_buffer_size"):
            refuse.stream_iterable(list, max_buffer_size=0)
        with pytest.raises(TypeError, match="limiter"):  # the worker's threads are the limit
            refuse.stream_from_thread(Scripted(), limiter=anyio.CapacityLimiter(1))
        with pytest.raises(TypeError, match="on_stop must be"):
            refuse.stream_iterable(list, on_stop=1)
        for wrong, error in (
            (0, ValueError),
            (-1.0, ValueError),
            ("1", TypeError),
            (True, TypeError),
        ):
            with pytest.raises(error, match="queue_timeout must be"):
                refuse.stream_from_thread(Scripted(), queue_timeout=wrong)
            with pytest.raises(error, match="queue_timeout must be"):
                refuse.stream_iterable(list, queue_timeout=wrong)
            with pytest.raises(error, match="queue_timeout must be"):
                await refuse.run(int, queue_timeout=wrong)
        with pytest.raises(TypeError, match="must be opened first"):
            aiter(refuse.stream_iterable(list))
        context = worker.stream_iterable(list[int])
        async with context as stream:
            assert await rest(stream) == []
        with pytest.raises(RuntimeError, match="opened before"):
            await context.__aenter__()
    opened = open_worker()
    async with opened:
        pass
    with pytest.raises(RuntimeError, match="opened before"):
        await opened.__aenter__()


@pytest.mark.parametrize(
    "error",
    [
        EngineClosed("worker"),
        EngineDied("worker"),
        EngineClosed(),
        GenerationTimeout("queued"),
        GenerationTimeout("queued", "stream of the worker"),
    ],
)
def test_errors_can_go_to_another_process(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


# -- the ways out of a block


@each_way_out
async def test_each_way_out_stops_the_producer_and_joins_it(way: WayOut) -> None:
    async with open_worker() as worker:
        producer = Scripted()
        with CancelScope() as scope, contextlib.suppress(BodyError):
            async with worker.stream_from_thread(producer) as stream:
                assert await stream.receive() == 0
                await way(stream, scope)
        assert producer.has_left
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        assert await worker.run(int) == 0
        assert worker.statistics().running == worker.statistics().waiting == 0


@each_way_out
async def test_a_callback_is_called_once_in_each_way_out(way: WayOut) -> None:
    async with open_worker() as worker:
        producer = Blocked()
        with CancelScope() as scope, contextlib.suppress(BodyError):
            async with worker.stream_from_thread(producer) as stream:
                assert await stream.receive() == "item"
                await way(stream, scope)
        assert producer.returned
        assert producer.calls == 1


async def test_other_threads_of_a_producer_can_emit() -> None:
    def produce(emit: Any, should_stop: Stopping) -> None:
        threads = [threading.Thread(target=emit, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async with open_worker() as worker:
        assert sorted(await read(worker, produce)) == list(range(5))


# -- a function


async def test_a_function_returns_its_result_or_raises_its_error() -> None:
    error = LookupError("no")

    def fail(*args: object) -> None:
        assert args == (1, "a")
        raise error

    async with open_worker() as worker:
        assert await worker.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(LookupError) as raised:
            await worker.run(fail, 1, "a")
        assert raised.value is error
        refuse: Any = worker
        with pytest.raises(TypeError, match="func must be a plain function"):
            await refuse.run(anyio.sleep, 1)
        with pytest.raises(TypeError, match="func must be a callable"):
            await refuse.run(1)
        with pytest.raises(TypeError, match="on_stop must be"):
            await refuse.run(int, on_stop=1)
        with pytest.raises(TypeError, match="returned a generator"):  # for another thread
            await refuse.run(lambda: (number for number in range(3)))


async def test_a_function_whose_caller_is_cancelled_ends_first() -> None:
    stop, events = threading.Event(), []

    def block() -> None:
        events.append("began")
        assert stop.wait(PATIENCE)
        events.append("ended")

    async with open_worker() as worker:
        with CancelScope() as scope:
            async with create_task_group() as tasks:

                @tasks.start_soon
                async def cancel() -> None:
                    await until(lambda: events)
                    scope.cancel()

                await worker.run(block, on_stop=stop.set)
        assert scope.cancelled_caught
        assert events == ["began", "ended"]


async def test_a_function_whose_caller_is_cancelled_in_the_queue_is_not_called() -> None:
    latch, calls = Latch(), list[int]()
    async with open_worker() as worker:
        async with worker.stream_from_thread(latch):
            with CancelScope() as scope:
                async with create_task_group() as tasks:

                    @tasks.start_soon
                    async def cancel() -> None:
                        await until_waiting(worker, 1)
                        scope.cancel()

                    await worker.run(calls.append, 1)
            latch.let_go()
        assert scope.cancelled_caught
        assert await worker.run(int) == 0
    assert not calls


# -- a producer that waits for something in the event loop


async def test_a_producer_waits_for_an_answer() -> None:
    send, receive = anyio.create_memory_object_stream[str](1)
    error = OSError("no")

    async def fail() -> None:
        raise error

    def produce(emit: Any, should_stop: Stopping) -> None:
        emit(should_stop.wait_for(receive.receive))
        should_stop.wait_for(anyio.sleep, 0)
        with pytest.raises(OSError, match="no") as raised:
            should_stop.wait_for(fail)
        assert raised.value is error
        emit("end")

    async with open_worker() as worker:
        for stream_of in (worker.stream_from_thread, stream_from_thread):
            async with stream_of(produce) as stream:
                await send.send("answer")
                assert await rest(stream) == ["answer", "end"]
    send.close()
    receive.close()


@each_way_out
async def test_a_stop_cancels_what_a_producer_waits_for(way: WayOut) -> None:
    began, ended = threading.Event(), []

    async def wait() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("the wait")

    def produce(emit: Any, should_stop: Stopping) -> None:
        emit(1)
        try:
            should_stop.wait_for(wait)
        finally:
            with contextlib.suppress(BaseException):
                should_stop.wait_for(wait)  # it would wait for ever
            ended.append("the producer")

    async with open_worker() as worker:
        for stream_of in (worker.stream_from_thread, stream_from_thread):
            began.clear()
            ended.clear()
            with CancelScope() as scope, contextlib.suppress(BodyError):
                async with stream_of(produce) as stream:
                    assert await stream.receive() == 1
                    await until(began.is_set)
                    await way(stream, scope)
            assert ended == ["the wait", "the producer"]
        assert await worker.run(int) == 0


async def test_another_thread_of_a_producer_cannot_wait() -> None:
    raised: list[BaseException] = []

    def produce(emit: Any, should_stop: Stopping) -> None:
        def wait() -> None:
            try:
                should_stop.wait_for(anyio.sleep, 0)
            except RuntimeError as exc:
                raised.append(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()

    async with open_worker() as worker:
        await read(worker, produce)
    assert "producer's own thread" in str(raised[0])


# -- statistics


async def test_statistics_count_and_time() -> None:
    latch = Latch()
    async with open_worker(threads=2) as worker:
        assert repr(worker) == "<anystreamer.Worker open, 0 running, 0 waiting>"
        async with worker.stream_from_thread(latch), worker.stream_from_thread(latch):
            async with worker.stream_from_thread(latch):
                await until(lambda: worker.statistics().running == 2)
                assert worker.statistics().waiting == 1
            assert worker.statistics().waiting == 0
            latch.let_go()
        statistics = worker.statistics()
    assert (statistics.threads, statistics.running, statistics.waiting) == (2, 0, 0)
    assert statistics.queued.count == 2  # the third had no turn
    assert statistics.total.count == 3
    assert statistics.total.sum >= statistics.queued.sum > 0
    assert repr(worker) == "<anystreamer.Worker closed, 0 running, 0 waiting>"


async def test_a_stream_has_a_result_an_ending_and_a_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def numbers() -> Generator[str, None, str]:
        yield threading.current_thread().name
        return "result"

    caplog.set_level(logging.DEBUG, "anystreamer")
    async with open_worker() as worker:
        async with worker.stream_iterable(numbers, name="mine") as stream:
            assert (await rest(stream))[0].startswith("mine #")
            assert stream.result == "result"
            assert stream.ending is Ending.ENDED
        async with worker.stream_from_thread(Scripted()) as stopped_stream:
            stopped_stream.stop()
            await rest(stopped_stream)
            assert stopped_stream.ending is Ending.STOPPED
        assert not (await worker.run(threading.current_thread)).name.startswith("current_thread")
    log = caplog.text
    assert "mine #" in log
    assert "Scripted #" in log
    assert "current_thread #" in log


async def test_an_iterable_can_stay_open(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntwo\n")
    with path.open() as lines:
        async with open_worker() as worker:
            async with worker.stream_iterable(lambda: lines, close=False) as stream:
                assert await rest(stream) == ["one\n", "two\n"]
        assert not lines.closed


async def test_nothing_is_kept_of_a_stream_that_has_ended() -> None:
    class Item:
        pass

    def produce(emit: Emit[Item], should_stop: Stopping) -> None:
        emit(Item())

    async with open_worker() as worker:
        async with worker.stream_from_thread(produce) as stream:
            item = ref(await stream.receive())
            with pytest.raises(EndOfStream):
                await stream.receive()
            state = ref(state_of(stream))
        del stream

        def are_gone() -> bool:
            gc.collect()
            return item() is None and state() is None

        await until(are_gone)  # the thread and the stream's task let go of them in their own time
