"""What many streams at once cost that do nothing: processor time, threads, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio

import anystreamer

from .footprint import look
from .method import Table

LIMIT = 10
CALM = 5.0  # seconds until those that look for space do so rarely
SECONDS = 3.0


async def crowd(kind: str, streams: int) -> Table:
    """Open them, and measure while nothing happens.

    *kind*: ``silent`` streams have a producer that blocks and a consumer that waits, ``full`` ones
    a bounded buffer that nobody reads, and ``limited`` ones are silent, and share a limiter.
    """
    over, opened = threading.Event(), []
    limiter = anyio.CapacityLimiter(LIMIT) if kind == "limited" else None

    def produce(emit: Callable[[int], None], _: object) -> None:
        emit(0)
        while kind == "full" and not over.is_set():
            emit(0)
        over.wait()

    async def hold() -> None:
        async with anystreamer.stream_from_thread(
            produce, max_buffer_size=10, limiter=limiter
        ) as stream:
            opened.append(stream)
            if kind == "full":
                await anyio.sleep_forever()
            async for _ in stream:
                pass

    memory, threads = look()
    async with anyio.create_task_group() as tasks:
        for _ in range(streams):
            tasks.start_soon(hold)
        while len(opened) < streams:
            await anyio.sleep(0.01)
        await anyio.sleep(CALM)
        started, cpu = time.perf_counter(), time.process_time()
        await anyio.sleep(SECONDS)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        now_memory, now_threads = look()
        over.set()
        tasks.cancel_scope.cancel()
    return {
        "percent_of_a_core": 100 * share,
        "threads": now_threads - threads,
        "mb": (now_memory - memory) / 1e6,
    }
