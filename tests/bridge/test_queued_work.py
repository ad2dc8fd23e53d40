"""Promise 3: work that is left before its turn never runs."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter, create_task_group

from anystreamer import stream_from_thread

from ..helpers.scripted import Native, Scripted, each_native_loop, rest, until
from ..helpers.ways_out import WayOut, each_way_out, leave_by


async def test_a_block_entered_in_a_cancelled_scope_starts_nothing() -> None:
    producer = Scripted()
    with CancelScope() as scope:
        scope.cancel()
        async with stream_from_thread(producer) as stream:
            await stream.receive()
    assert not producer.entered


@each_native_loop
def test_native_cancellation_while_queued_starts_nothing(native: Native) -> None:
    producer = Scripted()

    async def consume(limiter: CapacityLimiter) -> None:
        async with stream_from_thread(producer, limiter=limiter) as stream:
            await rest(stream)

    async def main() -> None:
        limiter = CapacityLimiter(1)
        async with limiter:
            task = asyncio.create_task(consume(limiter))
            while not limiter.statistics().tasks_waiting:
                await asyncio.sleep(0)
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert limiter.statistics().borrowed_tokens == 0
        assert limiter.statistics().tasks_waiting == 0

    native.run(main)
    assert not producer.entered


@each_way_out
async def test_work_that_is_left_before_its_turn_never_runs(way: WayOut) -> None:
    limiter = CapacityLimiter(1)
    holder, producer = Scripted(allowed=0), Scripted()
    async with stream_from_thread(holder, limiter=limiter):
        await until(lambda: holder.entered)
        assert await leave_by(way, producer, CancelScope(), limiter=limiter)
        assert holder.running
        assert limiter.statistics().tasks_waiting == 0
    assert not producer.entered
    assert limiter.statistics().borrowed_tokens == 0


async def test_stop_of_queued_work_wakes_a_receive_that_was_waiting_already() -> None:
    limiter = CapacityLimiter(1)
    producer = Scripted()
    async with limiter, stream_from_thread(producer, limiter=limiter) as stream:
        async with create_task_group() as tg:

            async def wait() -> None:
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

            tg.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            threading.Thread(target=stream.stop).start()
    assert not producer.entered


async def test_work_that_was_stopped_while_queued_passes_its_turn_on() -> None:
    limiter = CapacityLimiter(1)
    first, second = Scripted(2), Scripted(2)
    async with limiter:
        async with (
            stream_from_thread(first, limiter=limiter) as stopped_one,
            stream_from_thread(second, limiter=limiter) as other,
        ):
            stopped_one.stop()  # and no task receives from it
            limiter.release()
            assert await rest(other) == [0, 1]
            assert await rest(stopped_one) == []
            await limiter.acquire()
    assert not first.entered
