"""Promise 6: a bounded buffer holds its producer, and never in the way of others."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter, create_task_group

from anystreamer import stream_from_thread

from ..helpers.inside import held
from ..helpers.scripted import PATIENCE, Scripted, rest, until


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_full_buffer_holds_the_producer_until_an_item_is_taken(size: int) -> None:
    producer = Scripted(size + 3)
    async with stream_from_thread(producer, max_buffer_size=size) as stream:
        for taken in range(4):
            allowed = size + taken
            await until(lambda: producer.steps >= allowed)  # noqa: B023
            if allowed < size + 3:
                await held(stream)
            assert producer.steps == allowed
            assert await stream.receive() == taken
        assert await rest(stream) == list(range(4, size + 3))


async def test_an_unbounded_producer_is_held_by_nothing() -> None:
    producer = Scripted(10_000)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        assert await rest(stream) == list(range(10_000))


async def test_a_held_producer_gives_way_to_one_that_waits_for_the_limiter() -> None:
    limiter = CapacityLimiter(1)
    first, second = Scripted(10), Scripted(3)
    async with stream_from_thread(first, max_buffer_size=2, limiter=limiter) as stream:
        await until(lambda: first.steps == 2)
        async with stream_from_thread(second, limiter=limiter) as other:
            with anyio.fail_after(PATIENCE):
                assert await rest(other) == [0, 1, 2]
        assert first.has_left
        assert await rest(stream) == list(range(10))


async def test_nested_bounded_streams_on_one_limiter_in_one_task_do_not_deadlock() -> None:
    limiter = CapacityLimiter(1)
    received: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with stream_from_thread(Scripted(3), max_buffer_size=1, limiter=limiter) as outer:
            async for i in outer:
                async with stream_from_thread(
                    Scripted(3), max_buffer_size=1, limiter=limiter
                ) as middle:
                    async for j in middle:
                        async with stream_from_thread(
                            Scripted(2), max_buffer_size=1, limiter=limiter
                        ) as inner:
                            async for k in inner:
                                received.append((i, j, k))
    assert received == [(i, j, k) for i in range(3) for j in range(3) for k in range(2)]


@pytest.mark.parametrize("tokens", [1, 2])
async def test_bounded_streams_on_one_limiter_across_tasks_do_not_deadlock(tokens: int) -> None:
    """Each task opens its stream, and reads it only when the next task has read its own."""
    limiter = CapacityLimiter(tokens)
    done = [anyio.Event() for _ in range(6)]
    done[-1].set()

    async def consume(number: int) -> None:
        async with stream_from_thread(Scripted(5), max_buffer_size=1, limiter=limiter) as stream:
            await done[number + 1].wait()
            assert await rest(stream) == list(range(5))
        done[number].set()

    with anyio.fail_after(PATIENCE):
        async with create_task_group() as tg:
            for number in range(5):
                tg.start_soon(consume, number)
                await anyio.wait_all_tasks_blocked()


async def test_a_producer_that_gave_way_is_held_again_when_no_other_waits() -> None:
    limiter = CapacityLimiter(1)
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=1, limiter=limiter) as stream:
        await until(lambda: producer.steps == 1)
        async with stream_from_thread(Scripted(1), limiter=limiter):
            await until(lambda: producer.steps >= 3)
        # It has been left while it was queued: no producer waits now.
        await held(stream)
        steps = producer.steps
        await held(stream)
        assert producer.steps == steps
        received = [await stream.receive() for _ in range(steps)]
    assert received == list(range(steps))


async def test_stop_of_a_held_producer_keeps_the_items_that_wait() -> None:
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=3) as stream:
        await until(lambda: producer.steps == 3)
        stream.stop()
        received = await rest(stream)
    assert received == list(range(producer.steps))
    assert producer.steps <= 4
