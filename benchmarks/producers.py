"""What it costs to stream from a producer that holds the GIL, and how late its items arrive.

A generator computes each item in Python, and releases the interpreter only when it must. One runs
alone, and eight at once. There is no model: the way from a thread to a task is measured.
`per_item.py` describes the ratios. The peers are the usual ways: Starlette's
``iterate_in_threadpool``, a queue that a worker thread waits for, asyncio's
``call_soon_threadsafe`` into a queue, as in transformers' streamer, anyio's ``from_thread.run``
with a memory object stream, and two queues with a side for threads and one for tasks: culsans, and
janus for asyncio.

`flood.py` measures items that take no work, and `crowd.py` many streams that do nothing.
"""

from __future__ import annotations

import asyncio
import math
import queue
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import culsans
import janus
from anyio import from_thread, to_thread
from anyio.lowlevel import checkpoint
from starlette.concurrency import iterate_in_threadpool

import anystreamer

from . import crowd, flood
from .method import ALL_LOOPS, ON_ASYNCIO, Table
from .per_item import Run, Ways, compare

ITEMS = 400
WORK = 12_000  # iterations of an empty loop: about 0.3 ms
AT_ONCE = 8
FLOOD_SIZE = 1000

END = object()


def items(run: Run, count: int) -> Iterator[int]:
    with run:
        for item in range(count):
            for _ in range(0 if run.is_flood else WORK):
                pass
            run.sent()
            yield item


async def silent(count: int, run: Run) -> None:
    def drain() -> None:
        for _ in items(run, count):
            pass

    await to_thread.run_sync(drain)


async def ours(count: int, run: Run) -> None:
    async with anystreamer.stream_iterable(lambda: items(run, count)) as stream:
        async for _ in stream:
            run.arrived()
    assert run.is_flood or len(run.latencies) == count


async def emitting(count: int, run: Run, *, many: bool = False, size: float = math.inf) -> None:
    def produce(emit: Callable[[int], None], _: object) -> None:
        for item in items(run, count):
            emit(item)

    async with anystreamer.stream_from_thread(produce, max_buffer_size=size) as stream:
        if not many:
            async for _ in stream:
                run.arrived()
        with suppress(anyio.EndOfStream):
            while True:
                run.arrived(len(await stream.receive_many()))


async def in_threadpool(count: int, run: Run) -> None:
    async for _ in iterate_in_threadpool(items(run, count)):
        run.arrived()


async def thread_and_queue(count: int, run: Run) -> None:
    made: queue.Queue[object] = queue.Queue()

    def produce() -> None:
        for item in items(run, count):
            made.put(item)
        made.put(END)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, produce)
        while await to_thread.run_sync(made.get) is not END:
            run.arrived()


async def call_soon(count: int, run: Run) -> None:
    made: asyncio.Queue[object] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def produce() -> None:
        for item in items(run, count):
            loop.call_soon_threadsafe(made.put_nowait, item)
        loop.call_soon_threadsafe(made.put_nowait, END)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, produce)
        while await made.get() is not END:
            run.arrived()


async def memory_stream(count: int, run: Run, *, size: float = 0) -> None:
    send, receive = anyio.create_memory_object_stream[int](size)

    def produce() -> None:
        for item in items(run, count):
            from_thread.run(send.send, item)
        from_thread.run_sync(send.close)

    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(to_thread.run_sync, produce)
        async for _ in receive:
            run.arrived()


async def queue_with_two_sides(
    module: Any, count: int, run: Run, *, size: int = 0, is_fair: bool = False
) -> None:
    made = module.Queue(size)

    def produce() -> None:
        for item in items(run, count):
            made.sync_q.put(item)
        made.sync_q.put(END)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, produce)
        while await made.async_q.get() is not END:
            run.arrived()
            if is_fair:
                await checkpoint()
    if module is janus:
        await made.aclose()


def ways(count: int) -> Ways:
    return {
        "silent": (partial(silent, count), ("asyncio",)),
        "stream_iterable": (partial(ours, count), ALL_LOOPS),
        "iterate_in_threadpool": (partial(in_threadpool, count), ALL_LOOPS),
        "thread and queue": (partial(thread_and_queue, count), ALL_LOOPS),
        "call_soon_threadsafe": (partial(call_soon, count), ON_ASYNCIO),
        "from_thread.run(send)": (partial(memory_stream, count), ALL_LOOPS),
        "culsans": (partial(queue_with_two_sides, culsans, count), ALL_LOOPS),
        "janus": (partial(queue_with_two_sides, janus, count), ON_ASYNCIO),
    }


def floods(count: int, size: int | None) -> dict[int, Ways]:
    """Ways for items that take no work, by how many; those with a handshake take fewer."""
    few, bound = count // 20, math.inf if size is None else size
    return {
        count: {
            "stream_from_thread": (partial(emitting, count, size=bound), ALL_LOOPS),
            "receive_many": (partial(emitting, count, size=bound, many=True), ALL_LOOPS),
            "culsans": (
                partial(queue_with_two_sides, culsans, count, size=size or 0),
                ALL_LOOPS,
            ),
            # On asyncio its `get` is a checkpoint only if it waits: other tasks do not run.
            "culsans and a checkpoint": (
                partial(queue_with_two_sides, culsans, count, size=size or 0, is_fair=True),
                ON_ASYNCIO,
            ),
            "janus": (partial(queue_with_two_sides, janus, count, size=size or 0), ON_ASYNCIO),
        }
        | ({} if size else {"call_soon_threadsafe": (partial(call_soon, count), ON_ASYNCIO)}),
        few: {
            "from_thread.run(send)": (partial(memory_stream, few, size=bound), ALL_LOOPS),
            "iterate_in_threadpool": (partial(in_threadpool, few), ALL_LOOPS),
        },
    }


def measure(is_quick: bool) -> Iterator[Table]:
    rounds, count = (3, ITEMS // 2) if is_quick else (10, ITEMS)
    few = count // 4
    flood_count = 20_000 if is_quick else 100_000
    for size in (None, FLOOD_SIZE):
        name = "unbounded" if size is None else f"bounded at {size:,}"
        yield {f"flood, {name}": flood.compare(floods(flood_count, size), rounds=rounds)}
    yield {"crowd": crowd.idle({"silent": 100, "full": 100}, ALL_LOOPS)}
    yield {"large crowd": crowd.idle({"silent": 300, "limited": 300}, ALL_LOOPS)}
    yield {"one, idle loop": compare(ways(count), count, rounds=rounds)}
    yield {"one, loop busy half the time": compare(ways(count), count, rounds=rounds, is_busy=True)}
    yield {f"{AT_ONCE} at once": compare(ways(few), few, rounds=rounds, streams=AT_ONCE)}
