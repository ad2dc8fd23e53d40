"""How fast items that take no work go through, what they cost, and how late others on the loop are.

The rate depends on the other work of the machine, and so do ratios to a peer, although less. The
processor time, of all threads, hardly does.
"""

from __future__ import annotations

import time
from functools import partial

import anyio

from .method import Table, percentiles, quartiles, ratio, run_on, take_turns
from .per_item import Run, Way, Ways

TICK = 0.001  # seconds; how late it is shows whether the loop is starved


class Flood(Run):
    """One stream of one turn, which notes nothing about its items."""

    is_flood = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.cpu = 0.0  # seconds
        self.late: list[float] = []  # seconds, of each tick

    def sent(self) -> None:
        pass

    def arrived(self, items: int = 1) -> None:
        pass

    async def tick(self) -> None:
        while True:
            due = time.perf_counter() + TICK
            await anyio.sleep(TICK)
            self.late.append(time.perf_counter() - due)


def turn(way: Way, loop: str, count: int) -> Flood:
    run = Flood(count)

    async def main() -> None:
        async with anyio.create_task_group() as work:
            work.start_soon(run.tick)
            await anyio.sleep(2 * TICK)
            run.started, run.cpu = time.perf_counter(), -time.process_time()
            await way(run)
            run.ended, run.cpu = time.perf_counter(), run.cpu + time.process_time()
            work.cancel_scope.cancel()

    run_on(loop, main)
    return run


def compare(ways: dict[int, Ways], *, rounds: int) -> Table:
    """Compare *ways*, by the number of their items, with culsans on the same loop."""
    turns = take_turns(
        {
            (name, loop): partial(turn, way, loop, count)
            for count, some in ways.items()
            for name, (way, loops) in some.items()
            for loop in loops
        },
        rounds,
        warm_up=1,
    )
    rates = {
        key: [run.count / (run.ended - run.started) for run in runs] for key, runs in turns.items()
    }
    return {
        f"{name} on {loop}": {
            "rounds": rounds,
            "items_per_second": quartiles(rates[name, loop]),
            "ratio_to_culsans": ratio(rates[name, loop], rates["culsans", loop]),
            "cpu_us_per_item": quartiles([1e6 * run.cpu / run.count for run in runs]),
            "late_ms": percentiles([1e3 * late for run in runs for late in run.late], 99, 100),
        }
        for (name, loop), runs in turns.items()
    }
