"""What it costs to stream from a producer that holds the GIL, and how late its items arrive.

A generator computes each item in Python, and releases the interpreter only when it must. One runs
alone, and eight at once. There is no model: the way from a thread to a task is measured.
`per_item.py` describes the ratios. The peers are the usual ways: Starlette's
``iterate_in_threadpool``, a queue that a worker thread waits for, asyncio's
``call_soon_threadsafe`` into a queue, as in transformers' streamer, anyio's ``from_thread.run``
with a memory object stream, and two queues with a side for threads and one for tasks: culsans, and
janus for asyncio.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from functools import partial

import anyio
import culsans
import janus
from anyio import from_thread, to_thread
from starlette.concurrency import iterate_in_threadpool

import anystreamer

from .method import ALL_LOOPS, ON_ASYNCIO, Table
from .per_item import Run, Ways, compare

ITEMS = 400
WORK = 12_000  # iterations of an empty loop: about 0.3 ms
AT_ONCE = 8

END = object()


def items(run: Run, count: int) -> Iterator[int]:
    with run:
        for item in range(count):
            for _ in range(WORK):
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
    assert len(run.latencies) == count


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


async def memory_stream(count: int, run: Run) -> None:
    send, receive = anyio.create_memory_object_stream[int]()

    def produce() -> None:
        for item in items(run, count):
            from_thread.run(send.send, item)
        from_thread.run_sync(send.close)

    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(to_thread.run_sync, produce)
        async for _ in receive:
            run.arrived()


async def culsans_queue(count: int, run: Run) -> None:
    made: culsans.Queue[object] = culsans.Queue()

    def produce() -> None:
        for item in items(run, count):
            made.sync_q.put(item)
        made.sync_q.put(END)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, produce)
        while await made.async_q.get() is not END:
            run.arrived()


async def janus_queue(count: int, run: Run) -> None:
    made: janus.Queue[object] = janus.Queue()

    def produce() -> None:
        for item in items(run, count):
            made.sync_q.put(item)
        made.sync_q.put(END)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, produce)
        while await made.async_q.get() is not END:
            run.arrived()
    await made.aclose()


def ways(count: int) -> Ways:
    return {
        "silent": (partial(silent, count), ("asyncio",)),
        "stream_iterable": (partial(ours, count), ALL_LOOPS),
        "iterate_in_threadpool": (partial(in_threadpool, count), ALL_LOOPS),
        "thread and queue": (partial(thread_and_queue, count), ALL_LOOPS),
        "call_soon_threadsafe": (partial(call_soon, count), ON_ASYNCIO),
        "from_thread.run(send)": (partial(memory_stream, count), ALL_LOOPS),
        "culsans": (partial(culsans_queue, count), ALL_LOOPS),
        "janus": (partial(janus_queue, count), ON_ASYNCIO),
    }


def measure(is_quick: bool) -> Iterator[Table]:
    rounds, count = (3, ITEMS // 2) if is_quick else (10, ITEMS)
    few = count // 4
    yield {"one, idle loop": compare(ways(count), count, rounds=rounds)}
    yield {"one, loop busy half the time": compare(ways(count), count, rounds=rounds, is_busy=True)}
    yield {f"{AT_ONCE} at once": compare(ways(few), few, rounds=rounds, streams=AT_ONCE)}
