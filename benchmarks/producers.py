"""What it costs to stream from a producer that holds the GIL, and how late its items are.

    python benchmarks/producers.py [--quick] [--out benchmarks/results/producers.json]

A generator computes each item in Python, and lets the interpreter go only when it has to; one alone
and eight at once. No model: what is measured is the way from a thread to a task. Ratios as
per_item.py says. The peers are what people write: Starlette's ``iterate_in_threadpool``, a queue
that a worker thread waits for, asyncio's ``call_soon_threadsafe`` into a queue, as transformers'
streamer has it, and anyio's ``from_thread.run`` with a memory object stream.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from functools import partial

import anyio
from anyio import from_thread, to_thread
from common import LOOPS, Table, environment, options_of, write
from per_item import Run, Ways, compare
from starlette.concurrency import iterate_in_threadpool
from tables import show

import anystreamer

ITEMS = 400
WORK = 12_000  # turns of an empty loop: some 0.3 ms
AT_ONCE = 8

ALL = tuple(LOOPS)
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


def ways(count: int) -> Ways:
    return {
        "silent": (partial(silent, count), ("asyncio",)),
        "stream_iterable": (partial(ours, count), ALL),
        "iterate_in_threadpool": (partial(in_threadpool, count), ALL),
        "thread and queue": (partial(thread_and_queue, count), ALL),
        "call_soon_threadsafe": (partial(call_soon, count), ("asyncio", "uvloop")),
        "from_thread.run(send)": (partial(memory_stream, count), ALL),
    }


def main() -> None:
    options = options_of(__doc__).parse_args()
    rounds, count = (3, ITEMS // 2) if options.quick else (10, ITEMS)
    results: Table = {"environment": environment(options)}

    def measure(name: str, count: int, **kwargs: int) -> None:
        results[name] = compare(ways(count), count, rounds=rounds, **kwargs)
        write(results, options.out)

    measure("one, idle loop", count)
    measure("one, loop busy half the time", count, is_busy=True)
    measure(f"{AT_ONCE} at once", count // 4, streams=AT_ONCE)
    show("producers", results)


if __name__ == "__main__":
    main()
