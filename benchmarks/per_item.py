"""The time per item of ways that take turns, over that of nobody listening; and how late items are.

Each round runs every way once, in an order that changes. A way's cost is its time per item divided
by that of ``silent`` in the same round: a worker thread that makes the same and hands nothing over.
Medians over the rounds, with the quartiles. An item is late from the moment that its thread has it
until its consumer does.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

import anyio
from common import LOOPS, Table, percentile, quartiles

BUSY = 0.001  # seconds of work, and of rest. uvloop knows no shorter one.


class Run:
    """What one stream of one go does and when."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0
        self.latencies: list[float] = []
        self._sent: deque[float] = deque()

    def __enter__(self) -> None:
        """In the thread: without the thread's start."""
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.ended = time.perf_counter()

    def sent(self) -> None:
        self._sent.append(time.perf_counter())

    def arrived(self, items: int = 1) -> None:
        now = time.perf_counter()
        for _ in range(items):
            self.latencies.append(now - self._sent.popleft())


Way = Callable[[Run], Awaitable[None]]
Ways = dict[str, tuple[Way, tuple[str, ...]]]  # with the loops that each can do with


async def busy_half_the_time() -> None:
    """Other work on the loop, with the GIL."""
    while True:
        until = time.perf_counter() + BUSY
        while time.perf_counter() < until:
            pass
        await anyio.sleep(BUSY)


def go(way: Way, loop: str, streams: int, is_busy: bool) -> list[Run]:
    runs = [Run() for _ in range(streams)]

    async def main() -> None:
        async with anyio.create_task_group() as work:
            if is_busy:
                work.start_soon(busy_half_the_time)
            async with anyio.create_task_group() as tasks:
                for run in runs:
                    tasks.start_soon(way, run)
            work.cancel_scope.cancel()

    backend, options = LOOPS[loop]
    anyio.run(main, backend=backend, backend_options=options)
    return runs


def compare(
    ways: Ways, items: int, *, rounds: int, streams: int = 1, is_busy: bool = False
) -> Table:
    """*items* are those of each stream; one of the ways is ``silent``."""
    jobs = [(name, loop, way) for name, (way, loops) in ways.items() for loop in loops]
    times: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        for name, loop, way in random.sample(jobs, len(jobs)):
            runs = go(way, loop, streams, is_busy)
            if round_ == 0:
                continue  # it has warmed up
            seconds = max(run.ended for run in runs) - min(run.started for run in runs)
            key = name if name == "silent" else f"{name} on {loop}"
            times.setdefault(key, []).append(seconds / (items * streams))
            latencies.setdefault(key, []).extend(late for run in runs for late in run.latencies)
    base = times["silent"]
    return {
        key: {
            "rounds": rounds,
            "ms_per_item": quartiles([1e3 * each for each in times[key]]),
            "ratio_to_silent": quartiles(
                [one / other for one, other in zip(times[key], base, strict=True)]
            ),
            # The best of all rounds is what a noisy machine disturbs least.
            "ratio_of_best": min(times[key]) / min(base),
            "latency_ms": {
                "median": 1e3 * percentile(late, 0.5),
                "p99": 1e3 * percentile(late, 0.99),
                "max": 1e3 * max(late),
            }
            if (late := latencies[key])
            else None,
        }
        for name, loop, _ in jobs
        for key in [name if name == "silent" else f"{name} on {loop}"]
    }
