"""The time per item of streams, and how late items, or other tasks, are.

An item is late from the moment when its thread has it until its consumer has it. The ratios are to
``silent``, a worker thread that makes the same items and hands nothing over.

A flood of items, which take no work, is measured until the consumer has the last one, without
noting anything about an item. Its rate depends on the other work of the machine, and so do ratios
to a peer, although less. The processor time, of all threads, hardly does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio

from .method import Table, busy_half_the_time, compare, note_lateness, on_loops, run_on


class Run:
    """One stream of one turn: when it started and ended, and the latencies of its items."""

    def __init__(self, count: int, is_flood: bool = False) -> None:
        self.count, self.is_flood = count, is_flood
        self.started = self.ended = 0.0
        self.latencies: list[float] = []  # ms
        self._sent: deque[float] = deque()

    def __enter__(self) -> None:
        """In the worker thread, so that starting the thread is not measured."""
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.ended = time.perf_counter()

    def sent(self) -> None:
        if not self.is_flood:
            self._sent.append(time.perf_counter())

    def arrived(self, items: int = 1) -> None:
        if not self.is_flood:
            now = time.perf_counter()
            for _ in range(items):
                self.latencies.append(1e3 * (now - self._sent.popleft()))


SILENT = "silent on asyncio"
Way = Callable[[Run], Coroutine[Any, Any, None]]
Ways = dict[str, tuple[Way, tuple[str, ...]]]  # each with the loops that it runs on


def turn(loop: str, way: Way, *, items: int, streams: int, is_busy: bool) -> Table:
    runs = [Run(items) for _ in range(streams)]

    async def main() -> None:
        async with anyio.create_task_group() as work:
            if is_busy:
                work.start_soon(busy_half_the_time)
            async with anyio.create_task_group() as tasks:
                for run in runs:
                    tasks.start_soon(way, run)
            work.cancel_scope.cancel()

    run_on(loop, main)
    seconds = max(run.ended for run in runs) - min(run.started for run in runs)
    return {
        "ms_per_item": 1e3 * seconds / (items * streams),
        "latency_ms": [latency for run in runs for latency in run.latencies],
    }


def compare_ways(
    ways: Ways, items: int, *, rounds: int, streams: int = 1, is_busy: bool = False
) -> Table:
    """Compare *ways* with one of them, ``silent``. Each stream has that many items."""
    once = partial(turn, items=items, streams=streams, is_busy=is_busy)
    table = compare(on_loops(ways, once), rounds, "ms_per_item", warm_up=1, silent=SILENT)
    return {name: row for name, row in table.items() if name != SILENT}


def flood(loop: str, way: Way, items: int) -> Table:
    late: list[float] = []

    async def main() -> Table:
        async with anyio.create_task_group() as beside:
            beside.start_soon(note_lateness, late)
            await anyio.sleep(0.002)
            started, used = time.perf_counter(), time.process_time()
            await way(Run(items, is_flood=True))
            seconds, cpu = time.perf_counter() - started, time.process_time() - used
            beside.cancel_scope.cancel()
        return {"items_per_second": items / seconds, "cpu_us_per_item": 1e6 * cpu / items}

    figures: Table = run_on(loop, main)
    return figures | {"late_ms": late}
