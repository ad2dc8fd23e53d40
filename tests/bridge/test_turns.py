"""Promise 9, as far as the bridge goes: turns are given one by one, in order."""

from __future__ import annotations

import functools

import anyio
from anyio import CapacityLimiter, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import stream_from_thread

from ..helpers.scripted import Emit, Latch, Scripted, ShouldStop, rest, until


async def test_turns_are_given_first_come_first_served() -> None:
    limiter = CapacityLimiter(1)
    order = []

    def produce(number: int, emit: Emit, should_stop: ShouldStop) -> None:
        order.append(number)
        emit(number)

    async def consume(number: int) -> None:
        produced = functools.partial(produce, number)
        async with stream_from_thread(produced, limiter=limiter) as stream:
            if number == 2:
                return  # while it is queued
            assert await rest(stream) == [number]

    async with create_task_group() as tg:
        async with limiter:
            for number in range(5):
                tg.start_soon(consume, number)
                await anyio.wait_all_tasks_blocked()
    assert order == [0, 1, 3, 4]


async def test_the_turn_is_held_until_the_producer_has_left() -> None:
    limiter = CapacityLimiter(1)
    latch = Latch("item")
    seen = []

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        seen.append(latch.running)

    async def next_one() -> None:
        async with stream_from_thread(produce, limiter=limiter) as stream:
            await rest(stream)

    async with create_task_group() as tg:
        async with stream_from_thread(latch, limiter=limiter) as stream:
            await until(latch.holding.is_set)
            tg.start_soon(next_one)
            await until(lambda: limiter.statistics().tasks_waiting)
            stream.stop()
            await checkpoint()
            assert not seen
            latch.let_go()
    assert seen == [False]


async def test_streams_without_a_limiter_never_wait_for_anyios_shared_threads() -> None:
    shared = anyio.to_thread.current_default_thread_limiter()
    before = shared.total_tokens
    shared.total_tokens = 1
    try:
        async with shared:
            async with (
                stream_from_thread(Scripted(2)) as one,
                stream_from_thread(Scripted(2)) as two,
            ):
                assert await rest(one) + await rest(two) == [0, 1, 0, 1]
    finally:
        shared.total_tokens = before


async def test_the_repr_shows_the_state() -> None:
    limiter = CapacityLimiter(1)
    producer = Scripted(1, allowed=0)
    async with limiter:
        async with stream_from_thread(producer, limiter=limiter) as stream:
            assert repr(stream) == "<anystreamer.ThreadStream waiting for its turn>"
            limiter.release()
            await until(lambda: producer.entered)
            assert repr(stream) == "<anystreamer.ThreadStream running>"
            producer.allow()
            await rest(stream)
            assert repr(stream) == "<anystreamer.ThreadStream ended>"
            await limiter.acquire()
    assert repr(stream) == "<anystreamer.ThreadStream closed>"
