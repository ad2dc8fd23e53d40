"""What it costs to stream from a producer that holds the GIL, and how late its items arrive.

The way from a thread to a task is measured, as `per_item.py` describes. culsans and janus, which is
for asyncio, are queues with a side for threads and one for tasks.
"""

from __future__ import annotations

import asyncio
import math
import queue
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
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

from .footprint import crowd
from .method import ALL_LOOPS, ON_ASYNCIO, Parts, Table, compare, run_anew
from .per_item import Run, Ways, compare_ways, flood

ITEMS = 400
WORK = 12_000  # iterations of an empty loop: about 0.3 ms
AT_ONCE = 8
FLOOD_SIZE = 1000
CROWDS = (("silent", 100), ("full", 100), ("silent", 300), ("limited", 300))  # that do nothing
END = object()


def items(run: Run) -> Iterator[object]:
    with run:
        for item in range(run.count):
            for _ in range(0 if run.is_flood else WORK):
                pass
            run.sent()
            yield item


async def silent(run: Run) -> None:
    await to_thread.run_sync(lambda: deque(items(run), maxlen=0))


async def ours(run: Run) -> None:
    async with anystreamer.stream_iterable(lambda: items(run)) as stream:
        async for _ in stream:
            run.arrived()
    assert len(run.latencies) == run.count


async def emitting(run: Run, *, size: float, many: bool = False) -> None:
    def produce(emit: Callable[[object], None], _: object) -> None:
        for item in items(run):
            emit(item)

    async with anystreamer.stream_from_thread(produce, max_buffer_size=size) as stream:
        if not many:
            async for _ in stream:
                run.arrived()
        with suppress(anyio.EndOfStream):
            while True:
                run.arrived(len(await stream.receive_many()))


async def in_threadpool(run: Run) -> None:
    async for _ in iterate_in_threadpool(items(run)):
        run.arrived()


async def carry(
    run: Run,
    put: Callable[[object], object],
    get: Callable[[], Awaitable[object]],
    is_fair: bool = False,
) -> None:
    """A worker thread puts the items somewhere, and this task gets them."""

    def produce() -> None:
        for item in items(run):
            put(item)
        put(END)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, produce)
        while await get() is not END:
            run.arrived()
            if is_fair:
                await checkpoint()


async def thread_and_queue(run: Run) -> None:
    made: queue.Queue[object] = queue.Queue()
    await carry(run, made.put, partial(to_thread.run_sync, made.get))


async def call_soon(run: Run) -> None:
    made: asyncio.Queue[object] = asyncio.Queue()
    call: Any = asyncio.get_running_loop().call_soon_threadsafe
    await carry(run, partial(call, made.put_nowait), made.get)


async def memory_stream(run: Run, *, size: float) -> None:
    send, receive = anyio.create_memory_object_stream[object](size)
    call: Any = from_thread.run
    async with send, receive:
        await carry(run, partial(call, send.send), receive.receive)


async def two_sides(module: Any, run: Run, *, size: float = math.inf, fair: bool = False) -> None:
    made = module.Queue(0 if size == math.inf else size)
    await carry(run, made.sync_q.put, made.async_q.get, fair)
    if module is janus:
        await made.aclose()


WAYS: Ways = {
    "silent": (silent, ("asyncio",)),
    "stream_iterable": (ours, ALL_LOOPS),
    "iterate_in_threadpool": (in_threadpool, ALL_LOOPS),
    "thread and queue": (thread_and_queue, ALL_LOOPS),
    "call_soon_threadsafe": (call_soon, ON_ASYNCIO),
    "from_thread.run(send)": (partial(memory_stream, size=0), ALL_LOOPS),
    "culsans": (partial(two_sides, culsans), ALL_LOOPS),
    "janus": (partial(two_sides, janus), ON_ASYNCIO),
}


def flood_ways(size: float) -> Ways:
    ways: Ways = {
        "stream_from_thread": (partial(emitting, size=size), ALL_LOOPS),
        "receive_many": (partial(emitting, size=size, many=True), ALL_LOOPS),
        "culsans": (partial(two_sides, culsans, size=size), ALL_LOOPS),
        # On asyncio its `get` is a checkpoint only if it waits: other tasks do not run.
        "culsans and a checkpoint": (
            partial(two_sides, culsans, size=size, fair=True),
            ON_ASYNCIO,
        ),
        "janus": (partial(two_sides, janus, size=size), ON_ASYNCIO),
        "from_thread.run(send)": (partial(memory_stream, size=size), ALL_LOOPS),
        "iterate_in_threadpool": (in_threadpool, ALL_LOOPS),
    }
    return ways | ({"call_soon_threadsafe": (call_soon, ON_ASYNCIO)} if size == math.inf else {})


HANDSHAKES = ("from_thread", "iterate")  # how the names begin of those that take fewer items


def compare_floods(size: float, count: int, rounds: int) -> Table:
    """Compare the ways with culsans on the same loop."""
    results: Table = {}
    for loop in ALL_LOOPS:
        ways = {
            f"{name} on {loop}": partial(
                flood, loop, way, count // 20 if name.startswith(HANDSHAKES) else count
            )
            for name, (way, loops) in flood_ways(size).items()
            if loop in loops
        }
        culsans_there = f"culsans on {loop}"
        results |= compare(ways, rounds, "items_per_second", warm_up=1, culsans=culsans_there)
    return results


def measure(is_quick: bool) -> Parts:
    rounds, count, flood_count = (3, ITEMS // 2, 20_000) if is_quick else (10, ITEMS, 100_000)
    yield "flood, unbounded", compare_floods(math.inf, flood_count, rounds)
    yield f"flood, bounded at {FLOOD_SIZE:,}", compare_floods(FLOOD_SIZE, flood_count, rounds)
    for kind, size in CROWDS:
        for loop in ALL_LOOPS:
            yield "crowd", f"{size} {kind} on {loop}", run_anew(loop, crowd, kind, size)
    yield "one, idle loop", compare_ways(WAYS, count, rounds=rounds)
    yield "one, loop busy half the time", compare_ways(WAYS, count, rounds=rounds, is_busy=True)
    yield f"{AT_ONCE} at once", compare_ways(WAYS, count // 4, rounds=rounds, streams=AT_ONCE)
