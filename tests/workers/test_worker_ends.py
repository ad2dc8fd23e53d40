"""How a worker and its streams end: left, held, dropped, in another loop, in a loop that ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, from_thread, to_thread
from anyio.lowlevel import checkpoint

from anystreamer import EngineClosed, Stopping, Worker, open_worker

from ..helpers.held import each_way_to_let_go, let_go
from ..helpers.inside import state_of
from ..helpers.scripted import PATIENCE, Native, Scripted, each_native_loop, rest, until
from .test_worker import Blocked

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")


class Held:
    """The items of producers, in generators that hold the streams."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.producers: list[Scripted] = []
        self.streams: list[Any] = []

    async def items(self) -> AsyncGenerator[Any, None]:
        self.producers.append(producer := Scripted())
        async with self.worker.stream_from_thread(producer) as stream:
            self.streams.append(stream)
            async for item in stream:
                yield item


# -- held across a yield


# trio says so to whoever drops a generator, whatever it holds.
@pytest.mark.filterwarnings("ignore:Async generator .*Held.items:ResourceWarning")
@each_way_to_let_go
async def test_a_stream_can_be_held_across_a_yield(way: str) -> None:
    async with open_worker() as worker:
        for _ in range(5):
            held = Held(worker)
            generators = [held.items()]
            with CancelScope() as scope:  # the consumer's task stays sound
                assert await anext(generators[0]) == 0
                await let_go(generators, way)
                (producer,) = held.producers
                await until(lambda producer=producer: producer.has_left)  # type: ignore[misc]
                await checkpoint()
            assert not scope.cancelled_caught
        await until(lambda: not worker.statistics().running)
        assert await worker.run(int) == 0


async def test_one_task_begins_a_generator_and_another_goes_on() -> None:
    async with open_worker() as worker:
        held = Held(worker)
        async with contextlib.aclosing(held.items()) as items:
            assert await anext(items) == 0

            async def go_on() -> None:
                assert await anext(items) == 1

            async with create_task_group() as tasks:
                tasks.start_soon(go_on)
            assert await anext(items) == 2


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "waiting"])
async def test_a_stream_that_is_dropped_stops(is_running: bool) -> None:
    producer, first = Blocked(), Scripted()
    async with open_worker() as worker, contextlib.AsyncExitStack() as stack:
        if not is_running:
            await stack.enter_async_context(worker.stream_from_thread(first))
            await until(lambda: first.entered)
        context = worker.stream_from_thread(producer)
        stream = await context.__aenter__()
        if is_running:
            assert await stream.receive() == "item"
        del context, stream
        gc.collect()
        if is_running:
            await until(lambda: producer.returned)
            assert producer.calls == 1
        else:
            await until(lambda: not worker.statistics().waiting)
            assert not first.has_left
        await stack.aclose()
        assert await worker.run(int) == 0
        assert producer.returned is is_running


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
async def test_the_parts_of_a_dropped_stream_are_collected_in_any_order(
    ended: bool, unraisable: list[Any]
) -> None:
    """CPython calls finalizers in the order of a list that each collection may change."""
    async with open_worker() as worker:
        for _ in range(3):
            producer = Scripted(1 if ended else math.inf)
            context: Any = worker.stream_from_thread(producer)
            stream = await context.__aenter__()
            assert await stream.receive() == 0
            if ended:
                await until(partial(is_shown, stream, "ended"))
            parts = [state_of(stream).buffer_receive, state_of(stream).buffer_send]
            context.cycle = cycle = [context, stream]
            holder = [cycle]
            del context, stream, cycle
            gc.collect()  # the context goes to the end of the list: it is reached through a holder
            del parts, holder
            gc.collect()
            await until(partial(getattr, producer, "has_left"))
            await until(lambda: not worker.statistics().running)
            gc.collect()
    assert unraisable == []


async def test_a_stream_is_collected_while_its_callback_s_lock_is_held() -> None:
    """As the lock of a `threading.Event`, whose `set` is a usual callback: it would deadlock."""
    lock, stopped = threading.Lock(), threading.Event()

    def call_back() -> None:
        with lock:
            stopped.set()

    def produce(emit: Any, stopping: Stopping) -> None:
        stopping.on_stop(call_back)
        emit("item")
        assert stopped.wait(PATIENCE)

    async with open_worker() as worker:
        context: Any = worker.stream_from_thread(produce)
        assert await (await context.__aenter__()).receive() == "item"
        with lock:
            del context
            gc.collect()
            assert not stopped.is_set()
        await until(stopped.is_set)
        assert await worker.run(int) == 0


def is_shown(stream: object, word: str) -> bool:
    return word in repr(stream)


# -- the worker's own block


@pytest.mark.parametrize("way", ["leaving", "raising", "cancelling"])
async def test_leaving_the_worker_ends_all_that_is_open(way: str) -> None:
    producers = [Scripted() for _ in range(5)]
    streams: list[Any] = []
    received: list[list[int]] = []

    async def consume(producer: Scripted) -> None:
        items: list[int] = []
        async with worker.stream_from_thread(producer) as stream:
            streams.append(stream)
            with pytest.raises(EngineClosed, match="the worker has been closed"):
                async for item in stream:
                    items.append(item)
        received.append(items)

    async with create_task_group() as tasks:
        with contextlib.suppress(KeyError), CancelScope() as scope:
            async with open_worker(threads=2) as worker:
                for producer in producers:
                    tasks.start_soon(consume, producer)
                await until(lambda: len(streams) == 5 and sum(p.steps > 3 for p in producers) == 2)
                if way == "raising":
                    raise KeyError
                if way == "cancelling":
                    scope.cancel()
                    await checkpoint()
        assert not any(producer.running for producer in producers)
        assert scope.cancelled_caught == (way == "cancelling")
    ran = [producer for producer in producers if producer.entered]
    assert len(ran) == 2
    # All that was made before has arrived.
    assert sorted(map(len, received)) == sorted([0, 0, 0, *(producer.steps for producer in ran)])
    with pytest.raises(EngineClosed):
        await worker.run(int)
    with pytest.raises(EngineClosed):
        await worker.stream_iterable(list[int]).__aenter__()


@pytest.mark.parametrize("way", ["leaving", "cancelling"])
async def test_leaving_the_worker_ends_what_blocks(way: str) -> None:
    blocked = Blocked()
    stop = threading.Event()
    worker: Any = None
    opened = anyio.Event()
    began: list[str] = []

    def call() -> None:
        began.append("call")
        assert stop.wait(PATIENCE)

    async def consume() -> None:
        await opened.wait()
        async with worker.stream_from_thread(blocked) as stream:
            began.append(await stream.receive())
            with pytest.raises(EngineClosed):
                await stream.receive()

    async def run() -> None:
        await opened.wait()
        with pytest.raises(EngineClosed):
            await worker.run(call, on_stop=stop.set)

    async with create_task_group() as tasks:
        tasks.start_soon(consume)
        tasks.start_soon(run)
        with CancelScope() as scope:
            async with open_worker(threads=2) as worker:
                opened.set()
                await until(lambda: len(began) == 2)
                if way == "cancelling":
                    scope.cancel()
                    await checkpoint()
    assert blocked.returned
    assert blocked.calls == 1


async def test_a_cancelled_scope_is_seen_while_the_body_is_shielded() -> None:
    blocked = Blocked()
    with CancelScope() as scope:
        async with open_worker() as worker:
            async with worker.stream_from_thread(blocked) as stream:
                assert await stream.receive() == "item"
                with CancelScope(shield=True):
                    scope.cancel()
                    await until(lambda: blocked.returned)
                    with pytest.raises(EngineClosed):
                        await stream.receive()
    assert blocked.calls == 1


@pytest.mark.parametrize("way", ["leaving", "cancelling"])
async def test_leaving_the_worker_cancels_what_producers_await(way: str) -> None:
    """By either way to await, whether it began before that or begins after it."""
    ended = []
    began = threading.Event()

    def waiting(emit: Any, should_stop: Stopping) -> None:
        began.set()
        try:
            should_stop.wait_for(anyio.sleep_forever)
        finally:
            for _ in range(3):
                with contextlib.suppress(BaseException):
                    from_thread.run(anyio.sleep_forever)
                ended.append(1)

    async def consume() -> None:
        with pytest.raises(EngineClosed):
            async with worker.stream_from_thread(waiting) as stream:
                await stream.receive()

    async with create_task_group() as tasks:
        with CancelScope() as scope:
            async with open_worker() as worker:
                tasks.start_soon(consume)
                await until(began.is_set)
                if way == "cancelling":
                    scope.cancel()
                    await checkpoint()
    assert ended == [1, 1, 1]


async def test_a_worker_that_is_not_used_and_one_that_is_cancelled_at_once() -> None:
    async with open_worker(threads=4) as worker:
        pass
    assert repr(worker) == "<anystreamer.Worker closed, 0 running, 0 waiting>"
    with CancelScope() as scope:
        scope.cancel()
        async with open_worker(threads=4):
            await checkpoint()
    assert scope.cancelled_caught


async def test_a_generator_that_outlives_its_worker_is_told() -> None:
    async with open_worker() as worker:
        items = Held(worker).items()
        assert await anext(items) == 0
    with pytest.raises(EngineClosed):
        async for _ in items:
            pass


async def test_a_thread_that_cannot_start_is_an_error_at_the_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker ends the threads that have started."""
    error = RuntimeError("can't start new thread")
    run_sync, calls = to_thread.run_sync, 0

    async def limited(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return await run_sync(*args, **options)

    monkeypatch.setattr(to_thread, "run_sync", limited)
    with pytest.raises(RuntimeError) as raised:
        async with open_worker(threads=3):
            raise AssertionError("it was opened")
    assert raised.value is error


# -- elsewhere


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_a_worker_in_the_loop_of_another_thread(other: str) -> None:
    if other == "trio":
        pytest.importorskip("trio")
    opened = open_worker(name="database")

    async def use() -> None:
        uses: list[Callable[[], Awaitable[object]]] = [
            lambda: worker.run(int),
            worker.stream_iterable(list[int]).__aenter__,
            lambda: opened.__aexit__(None, None, None),
        ]
        for use in uses:
            with pytest.raises(RuntimeError, match="'database' belongs to another event loop"):
                await use()

    async with opened as worker:
        await to_thread.run_sync(lambda: anyio.run(use, backend=other))
        assert await worker.run(int) == 0


# -- native asyncio


@each_native_loop
def test_a_loop_that_ends_under_an_open_worker(native: Native) -> None:
    """Only the end of the loop leaves the block. It cancels each task natively."""
    rng = random.Random(0)
    producers: list[Scripted] = []

    async def consume(worker: Worker) -> None:
        producers.append(producer := Scripted())
        async with worker.stream_from_thread(producer) as stream:
            await rest(stream)

    async def serve(opened: list[Worker]) -> None:
        async with open_worker(threads=2) as worker:
            opened.append(worker)
            await asyncio.sleep(PATIENCE)

    async def main() -> list[asyncio.Task[None]]:
        opened: list[Worker] = []
        tasks = [asyncio.create_task(serve(opened))]
        while not opened:
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(consume(opened[0])) for _ in range(4)]
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(rng.choice([0, 0, 0.0005]))
        return tasks

    for _ in range(20):
        tasks = native.run(main)
        assert not any(producer.running for producer in producers)
        assert [task.cancelled() for task in tasks] == [True] * 5


@each_native_loop
def test_a_stream_cancelled_natively_at_any_time(native: Native) -> None:
    rng = random.Random(0)

    async def read(worker: Worker) -> list[int]:
        async with worker.stream_from_thread(Scripted(3)) as stream:
            return await rest(stream)

    async def main() -> None:
        async with open_worker() as worker:
            for _ in range(150):
                task = asyncio.create_task(read(worker))
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(rng.choice([0, 0, 0, 0.0002]))
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await task == [0, 1, 2]
            statistics = worker.statistics()
            assert statistics.running == statistics.waiting == 0
            assert await read(worker) == [0, 1, 2]

    native.run(main)


@each_native_loop
def test_all_tasks_cancelled_natively_while_a_worker_opens(native: Native) -> None:
    async def main(turns: int) -> None:
        async def cancel() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                task.cancel()

        asyncio.create_task(cancel())  # noqa: RUF006
        async with open_worker(threads=2) as worker:
            await worker.run(int)
            await asyncio.sleep(PATIENCE)

    for turns in range(40):
        with pytest.raises((asyncio.CancelledError, EngineClosed)):
            native.run(lambda turns=turns: main(turns))  # type: ignore[misc]
