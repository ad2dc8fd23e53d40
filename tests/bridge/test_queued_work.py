"""Promise 3: work that is left before its turn never runs."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter, create_task_group

from anystreamer import ThreadStream, stream_from_thread
from anystreamer._bridge import delivery

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


async def test_streams_in_the_queue_are_watched_by_one_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds can wait. When the first one leaves the queue, another one watches."""
    watching: list[int] = []
    usual_sleep = anyio.sleep

    async def noted(seconds: float) -> None:
        watching.append(anyio.get_current_task().id)
        await usual_sleep(seconds / 10)

    monkeypatch.setattr(delivery, "async_sleep", noted)
    limiter = CapacityLimiter(1)
    running, queued = Scripted(allowed=0), [Scripted() for _ in range(6)]
    streams: list[ThreadStream[int]] = []
    ended: list[int] = []

    async def wait_in_queue(number: int) -> None:
        async with stream_from_thread(queued[number], limiter=limiter) as stream:
            streams.append(stream)
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        ended.append(number)

    async with create_task_group() as tg, stream_from_thread(running, limiter=limiter):
        await until(lambda: running.entered)
        for number in range(6):
            tg.start_soon(wait_in_queue, number)
            await until(lambda: len(streams) == number + 1)  # noqa: B023
        for number in (0, 3, 5, 1, 2, 4):
            watching.clear()
            await until(lambda: len(watching) > 3)
            assert len(set(watching)) == 1
            streams[number].stop()
            await until(lambda: number in ended)  # noqa: B023
    assert not any(producer.entered for producer in queued)
