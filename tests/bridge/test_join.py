"""Promise 1: when the block is left, the producer has left its thread."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import random
import threading
from typing import Any

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import stream_from_thread
from anystreamer._bridge import run_sync_joined

from ..helpers.scripted import (
    PATIENCE,
    Latch,
    Native,
    Scripted,
    each_native_loop,
    rest,
    settle,
    until,
)
from ..helpers.ways_out import (
    WAYS_OUT,
    WayOut,
    breaking,
    each_of,
    each_way_out,
    leave_by,
    reaching_the_end,
)


@each_of(*WAYS_OUT, reaching_the_end, breaking)
@pytest.mark.parametrize("receive", [0, 3])
async def test_after_the_block_the_producer_has_left_and_took_at_most_one_more_step(
    way: WayOut, receive: int
) -> None:
    """The fourth step takes until something stops it."""
    producer = Scripted(allowed=3)

    async def take(stream: Any, outer: CancelScope) -> None:
        if way in (reaching_the_end, breaking):  # they wait for what comes
            producer.length = producer.steps + (way is breaking)
            producer.allow()
        await way(stream, outer)

    assert await leave_by(take, producer, CancelScope(), receive=receive)
    assert producer.has_left or not producer.entered
    assert producer.steps <= 4


@each_way_out
async def test_a_producer_that_is_held_by_its_full_buffer_leaves_too(way: WayOut) -> None:
    producer = Scripted()

    async def held(stream: Any, outer: CancelScope) -> None:
        await until(lambda: producer.steps == 2)
        await way(stream, outer)

    assert await leave_by(held, producer, CancelScope(), max_buffer_size=2)
    assert producer.has_left
    # stop() does not drop what waits; so a consumer that goes on makes room for as many.
    assert producer.steps <= 3


async def test_a_step_in_progress_is_waited_for() -> None:
    latch = Latch("item")
    events = []

    async def watch() -> None:
        await until(latch.holding.is_set)
        await anyio.wait_all_tasks_blocked()
        events.append(("still running", latch.running))
        latch.let_go()

    async with create_task_group() as tg:
        tg.start_soon(watch)
        async with stream_from_thread(latch) as stream:
            assert await stream.receive() == "item"
            await until(latch.holding.is_set)
        events.append(("still running", latch.running))
    assert events == [("still running", True), ("still running", False)]


async def test_a_cancellation_while_the_step_is_waited_for_does_not_cut_the_wait() -> None:
    latch = Latch("item")
    with CancelScope() as outer:

        async def cancel() -> None:
            await until(latch.holding.is_set)
            await anyio.wait_all_tasks_blocked()
            outer.cancel()
            with CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                assert latch.running
                latch.let_go()

        async with create_task_group() as tg:
            tg.start_soon(cancel)
            try:
                async with stream_from_thread(latch) as stream:
                    await stream.receive()
                    await until(latch.holding.is_set)
            finally:
                assert not latch.running
            await checkpoint()  # the end of a trio nursery is not a checkpoint
    assert outer.cancelled_caught


@each_native_loop
def test_native_cancellation_of_the_consumer_joins_the_producer(native: Native) -> None:
    producer = Scripted(allowed=3)
    joined = []

    async def consume() -> None:
        try:
            async with stream_from_thread(producer) as stream:
                await rest(stream)
        finally:
            joined.append(producer.has_left)

    async def main() -> None:
        task = asyncio.create_task(consume())
        await until(lambda: producer.steps == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    native.run(main)
    assert joined == [True]
    assert producer.steps <= 4


@each_native_loop
@pytest.mark.parametrize("times", [1, 2, 30])
def test_native_cancellation_of_every_task_joins_the_producer(native: Native, times: int) -> None:
    """Also of the worker's own host task, and again while the producer is waited for."""
    latch = Latch("item")
    joined = []

    async def consume() -> None:
        try:
            async with stream_from_thread(latch) as stream:
                await rest(stream)
        finally:
            joined.append(not latch.running)

    async def main() -> None:
        task = asyncio.create_task(consume())
        await until(latch.holding.is_set)
        for _ in range(times):
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await settle()
            assert latch.running
            assert not joined
        latch.let_go()
        with pytest.raises(asyncio.CancelledError):
            await task

    native.run(main)
    assert joined == [True]


@each_native_loop
def test_a_thread_is_joined_though_what_is_to_end_it_raises(native: Native) -> None:
    """A Ctrl-C can strike there, or come from a callback of the producer's."""
    entered, go = threading.Event(), threading.Event()
    order: list[str] = []

    def block() -> None:
        entered.set()
        assert go.wait(PATIENCE)
        order.append("left")

    def fail() -> None:
        order.append("cancelled")
        raise KeyboardInterrupt

    async def join() -> None:
        with pytest.raises(KeyboardInterrupt):
            await run_sync_joined(block, when_cancelled=fail)
        order.append("joined")

    async def main() -> None:
        task = asyncio.create_task(join())
        await until(entered.is_set)
        task.cancel()
        await until(lambda: order)
        await settle()
        go.set()
        await task

    native.run(main)
    assert order == ["cancelled", "left", "joined"]


@each_native_loop
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_native_cancellation_of_every_task_at_each_step_of_the_loop(
    native: Native, again: bool
) -> None:
    """Wherever the tasks are: entering, starting the thread, receiving, leaving."""

    async def consume(producer: Scripted, joined: list[bool]) -> None:
        try:
            async with stream_from_thread(producer) as stream:
                for _ in range(3):
                    await stream.receive()
        finally:
            joined.append(not producer.running)

    async def main(turns: int, producer: Scripted, joined: list[bool]) -> None:
        task = asyncio.create_task(consume(producer, joined))
        for _ in range(turns):
            await asyncio.sleep(0)
        while not task.done():
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await asyncio.sleep(0)
            if not again:
                break
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done(), "waits for ever"
        assert task.cancelled() or task.exception() is None

    for turns in range(40):
        producer, joined = Scripted(), list[bool]()
        native.run(functools.partial(main, turns, producer, joined))
        assert joined in ([], [True])  # []: cancelled before its first step
        assert not producer.running


@each_native_loop
def test_asyncio_timeout_joins_the_producer(native: Native) -> None:
    producer = Scripted(allowed=1)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                try:
                    async with stream_from_thread(producer) as stream:
                        await rest(stream)
                finally:
                    assert not producer.running
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    native.run(main)
    assert producer.steps <= 2


@each_native_loop
def test_a_native_cancellation_is_never_swallowed(native: Native) -> None:
    """Also when it comes in the moment in which a waiting receive() looks after its producer."""

    async def main() -> None:
        latch = Latch("item")
        rng = random.Random(1)
        async with stream_from_thread(latch) as stream:
            assert await stream.receive() == "item"
            for _ in range(300):
                task = asyncio.create_task(stream.receive())
                await asyncio.sleep(rng.choice([0, 0.0035, 0.004, 0.0045]) * rng.random())
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, PATIENCE)
            latch.let_go()

    native.run(main)


@each_native_loop
@pytest.mark.parametrize("stage", ["running", "queued", "held", "ended"])
def test_a_runner_that_ends_under_an_open_stream_joins_its_producer(
    native: Native, stage: str
) -> None:
    """asyncio.run() and Runner.close() cancel what is left, and wait for it."""
    producer = Scripted(3 if stage == "ended" else math.inf)
    blocker = Scripted(allowed=0)
    joined = []

    async def consume(ready: asyncio.Event, limiter: CapacityLimiter) -> None:
        try:
            async with stream_from_thread(producer, limiter=limiter, max_buffer_size=4) as stream:
                if stage == "running":
                    await stream.receive()
                elif stage == "queued":
                    pass
                else:
                    await until(lambda: producer.steps == (4 if stage == "held" else 3))
                ready.set()
                await asyncio.sleep(3600)
        finally:
            joined.append(not producer.running)

    async def block(limiter: CapacityLimiter) -> None:
        async with stream_from_thread(blocker, limiter=limiter) as stream:
            await rest(stream)

    tasks = []

    async def main() -> None:
        limiter, ready = CapacityLimiter(1), asyncio.Event()
        if stage == "queued":
            tasks.append(asyncio.create_task(block(limiter)))
            await until(lambda: blocker.entered)
        tasks.append(asyncio.create_task(consume(ready, limiter)))
        await ready.wait()

    native.run(main)
    assert joined == [True]
    assert all(task.cancelled() for task in tasks)
    assert not blocker.running
    assert producer.entered is (stage != "queued")


@each_native_loop
def test_streams_of_several_runs_of_one_runner_are_independent(native: Native) -> None:
    """Runner.run() again on the same loop: worker threads of the first run are gone by then."""

    async def main() -> list[int]:
        async with stream_from_thread(Scripted(3)) as stream:
            return await rest(stream)

    with native.runner() as runner:
        assert [runner.run(main()) for _ in range(3)] == [[0, 1, 2]] * 3


@each_way_out
async def test_a_stream_leaves_nothing_open(way: WayOut) -> None:
    for _ in range(3):
        assert await leave_by(way, Scripted(), CancelScope(), receive=1)
        gc.collect()  # unclosed memory object streams would warn
