"""Event loops killed under flat-out workers: no thread is left, and nobody complains.

The bare pattern, a plain ``await anyio.to_thread.run_sync(...)`` without a task group, is put
through the same, to show that these tests can fail. Streams in any other state than flat out:
test_storm.py. Ctrl-C: test_interrupts.py.

The short run is in every test run; 2,000 loops of each kind are for ``nox -s soak``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, from_thread, to_thread
from anyio.lowlevel import checkpoint

from anystreamer import stream_from_thread, stream_text
from anystreamer.testing import ScriptedModel

from ..conftest import LOOPS
from ..helpers.scripted import NATIVE_LOOPS, Native, until

times = pytest.mark.parametrize(
    "times", [60, pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)

# More than can be played before the loop is killed.
SCRIPT = ["word "] * 3_000

Worker = Callable[["Kill"], Coroutine[Any, Any, None]]


class Killed(Exception):
    """What ends a run."""


class Kill:
    """A loop, with workers that never pause, and how it is killed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.inside = 0  # workers that have not left
        self.models: list[ScriptedModel] = []
        self.struck = 0  # workers that were running when the loop was killed

    @property
    def running(self) -> int:
        return self.inside + sum(model.is_generating for model in self.models)

    async def pause(self, most: int) -> None:
        for _ in range(self.rng.randrange(most)):
            await checkpoint()

    async def until_the_kill(self) -> None:
        if self.rng.random() < 0.5:
            await until(lambda: self.running)
        await self.pause(60)

    # -- workers

    def emits(self, emit: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
        self.inside += 1
        try:
            number = 0
            while not should_stop():
                emit(number)
                number += 1
        finally:
            self.inside -= 1

    async def produces(self) -> None:
        """A flat-out producer: of items that cross whenever the budget allows it."""
        size = self.rng.choice([1, 3, math.inf])
        async with stream_from_thread(self.emits, max_buffer_size=size) as stream:
            await self.consume(stream)

    async def generates(self) -> None:
        """A flat-out model."""
        model = ScriptedModel(SCRIPT)
        self.models.append(model)
        size = self.rng.choice([1, 3, math.inf])
        async with stream_text(model, model.tokenizer, "hi", max_buffer_size=size) as stream:
            await self.consume(stream)
            await anyio.sleep_forever()

    async def consume(self, stream: Any) -> None:
        pace = self.rng.choice([0, 1, 5])
        if not pace:  # one that does not read at all
            await anyio.sleep_forever()
        async for _ in stream:
            await self.pause(pace)

    async def bare(self) -> None:
        """What people write instead."""
        items: list[int] = []
        stopped = False

        def work() -> None:
            self.inside += 1
            try:
                number = 0
                while not stopped:
                    from_thread.run_sync(items.append, number)
                    number += 1
            finally:
                self.inside -= 1

        try:
            await to_thread.run_sync(work)
        finally:
            stopped = True

    # -- ways to kill a loop

    async def leave_tasks_behind(self, *workers: Worker) -> None:
        """What asyncio.run() and Runner.close() cancel, natively, when this has returned."""
        tasks = [asyncio.ensure_future(worker(self)) for worker in workers]
        await self.until_the_kill()
        if self.rng.random() < 0.3:
            for task in tasks:
                task.cancel()
            await self.pause(3)
        self.struck = self.running
        if self.rng.random() < 0.5:
            raise Killed

    def natively(self, native: Native, *workers: Worker) -> None:
        with contextlib.suppress(Killed):
            native.run(lambda: self.leave_tasks_behind(*workers))

    async def cancel(self, *workers: Worker) -> None:
        """The same by means that every loop has."""
        async with create_task_group() as tg:
            for worker in workers:
                tg.start_soon(worker, self)
            await self.until_the_kill()
            self.struck = self.running
            if self.rng.random() < 0.5:
                raise Killed
            tg.cancel_scope.cancel()

    def by_a_scope(self, backend: Any, *workers: Worker) -> None:
        name, options = backend
        try:
            anyio.run(self.cancel, *workers, backend=name, backend_options=options)
        except* Killed:
            pass


OURS: list[Worker] = [Kill.produces, Kill.generates, Kill.generates]


def kill_loops(times: int, kill_one: Callable[[Kill], object]) -> None:
    struck = 0
    for seed in range(times):
        kill = Kill(seed)
        kill_one(kill)
        assert not kill.running, seed
        struck += kill.struck
    print(f"{times} loops killed under {struck} running workers")
    assert struck > times / 4


@pytest.mark.slow
@pytest.mark.parametrize("native", NATIVE_LOOPS)
@times
def test_loops_that_end_under_flat_out_workers_join_them(native: Native, times: int) -> None:
    kill_loops(times, lambda kill: kill.natively(native, *OURS))


@pytest.mark.slow
@pytest.mark.parametrize("backend", LOOPS)
@times
def test_loops_that_are_cancelled_under_flat_out_workers_join_them(
    backend: Any, times: int
) -> None:
    kill_loops(times, lambda kill: kill.by_a_scope(backend, *OURS))


@pytest.mark.slow
@times
def test_trio_runs_that_crash_under_flat_out_workers_join_them(times: int) -> None:
    """A system task that fails ends all tasks of the run, in no order."""
    import trio

    async def crash() -> None:
        raise Killed

    async def main(kill: Kill) -> None:
        async with create_task_group() as tg:
            for worker in OURS:
                tg.start_soon(worker, kill)
            await kill.until_the_kill()
            kill.struck = kill.running
            trio.lowlevel.spawn_system_task(crash)
            await anyio.sleep_forever()

    def run(kill: Kill) -> None:
        with pytest.raises(trio.TrioInternalError):
            trio.run(main, kill)

    kill_loops(times, run)


# -- the bare pattern


def count_orphans(native: Native, times: int) -> None:
    """How many loops end before their bare workers do, and how many of those never end."""
    threading.excepthook = lambda _: None  # those that find their loop gone
    kills = []
    orphaned = 0
    for seed in range(times):
        kills.append(Kill(seed))
        kills[-1].natively(native, Kill.bare, Kill.bare)
        orphaned += kills[-1].running > 0
    deadline = time.monotonic() + 1
    while any(kill.running for kill in kills) and time.monotonic() < deadline:
        time.sleep(0.01)
    stuck = sum(kill.running > 0 for kill in kills)
    print(orphaned, "orphaned", stuck, "stuck", flush=True)
    os._exit(0)  # nobody could wait for those


@pytest.mark.slow
@pytest.mark.parametrize("loop", [str(loop.id) for loop in NATIVE_LOOPS])
@times
def test_the_bare_pattern_leaves_threads_behind(loop: str, times: int) -> None:
    """In a process of its own, which ends without waiting for them."""
    program = (
        f"from {__name__} import Native, count_orphans\n"
        f"count_orphans(Native(uvloop={loop == 'uvloop'}), {times})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"{loop}: of {times} loops {result.stdout}")
    assert int(result.stdout.split()[0]) > 0
