"""What many streams at once cost that do nothing: processor time, threads, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio

import anystreamer

from .method import Table, in_new_process, run_on

LIMIT = 10
CALM = 5.0  # seconds until those that look for space do so rarely
SECONDS = 3.0


def silent(over: threading.Event, emit: Callable[[int], None]) -> None:
    emit(0)
    over.wait()


def full(over: threading.Event, emit: Callable[[int], None]) -> None:
    while not over.is_set():
        emit(0)


def memory_mb() -> float:
    """What the process has in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def crowd(kind: str, streams: int) -> Table:
    """Open them, and measure while nothing happens.

    *kind*: ``silent`` streams have a producer that blocks and a consumer that waits, ``full`` ones
    a bounded buffer that nobody reads, and ``limited`` ones are silent, and share a limiter.
    """
    over, opened = threading.Event(), 0
    limiter = anyio.CapacityLimiter(LIMIT) if kind == "limited" else None
    produce = full if kind == "full" else silent

    async def hold() -> None:
        nonlocal opened
        async with anystreamer.stream_from_thread(
            lambda emit, _: produce(over, emit), max_buffer_size=10, limiter=limiter
        ) as stream:
            opened += 1
            if kind == "full":
                await anyio.sleep_forever()
            async for _ in stream:
                pass

    threads, memory = threading.active_count(), memory_mb()
    async with anyio.create_task_group() as tasks:
        for _ in range(streams):
            tasks.start_soon(hold)
        while opened < streams:
            await anyio.sleep(0.01)
        await anyio.sleep(CALM)
        started, cpu = time.perf_counter(), time.process_time()
        await anyio.sleep(SECONDS)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        result = {
            "percent_of_a_core": 100 * share,
            "threads": threading.active_count() - threads,
            "mb": memory_mb() - memory,
        }
        over.set()
        tasks.cancel_scope.cancel()
    return result


def idle(streams: dict[str, int], loops: tuple[str, ...]) -> Table:
    return {
        f"{count} {kind} on {loop}": in_new_process(run_on, loop, crowd, kind, count)
        for kind, count in streams.items()
        for loop in loops
    }
