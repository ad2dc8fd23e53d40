"""The time per item of streams, as a ratio to a silent one, and how late items arrive.

``silent`` is a worker thread that makes the same items and hands nothing over. The time of each way
is divided by its time in the same round. An item is late from the moment when its thread has it
until its consumer has it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from .method import Table, percentiles, quartiles, ratio, run_on, take_turns

BUSY = 0.001  # seconds of work, and of rest; uvloop cannot wait for a shorter time


class Run:
    """One stream of one turn: when it started and ended, and the latencies of its items."""

    is_flood = False  # its items take no work

    def __init__(self) -> None:
        self.started = self.ended = 0.0
        self.latencies: list[float] = []
        self._sent: deque[float] = deque()

    def __enter__(self) -> None:
        """In the worker thread, so that starting the thread is not measured."""
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
Ways = dict[str, tuple[Way, tuple[str, ...]]]  # each with the loops that it runs on


async def busy_half_the_time() -> None:
    """Other work on the loop, which holds the GIL."""
    while True:
        until = time.perf_counter() + BUSY
        while time.perf_counter() < until:
            pass
        await anyio.sleep(BUSY)


def turn(way: Way, loop: str, streams: int, is_busy: bool) -> list[Run]:
    runs = [Run() for _ in range(streams)]

    async def main() -> None:
        async with anyio.create_task_group() as work:
            if is_busy:
                work.start_soon(busy_half_the_time)
            async with anyio.create_task_group() as tasks:
                for run in runs:
                    tasks.start_soon(way, run)
            work.cancel_scope.cancel()

    run_on(loop, main)
    return runs


def milliseconds(runs: list[Run]) -> float:
    return 1e3 * (max(run.ended for run in runs) - min(run.started for run in runs))


def compare(
    ways: Ways, items: int, *, rounds: int, streams: int = 1, is_busy: bool = False
) -> Table:
    """Compare *ways* with one of them, ``silent``. Each stream has *items*."""
    jobs = {
        name if name == "silent" else f"{name} on {loop}": partial(
            turn, way, loop, streams, is_busy
        )
        for name, (way, loops) in ways.items()
        for loop in loops
    }
    turns = take_turns(jobs, rounds, warm_up=1)
    times = {
        name: [milliseconds(runs) / (items * streams) for runs in each]
        for name, each in turns.items()
    }
    late = {
        name: [1e3 * latency for runs in each for run in runs for latency in run.latencies]
        for name, each in turns.items()
    }
    return {
        name: {
            "rounds": rounds,
            "ms_per_item": quartiles(ms),
            "ratio_to_silent": ratio(ms, times["silent"]),
            # Other work on the machine disturbs the best of all rounds least.
            "ratio_of_best": min(ms) / min(times["silent"]),
            "latency_ms": percentiles(late[name], 99, 100) if late[name] else None,
        }
        for name, ms in times.items()
    }
