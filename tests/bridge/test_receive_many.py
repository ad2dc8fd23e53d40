"""`receive_many`: all that is ready in one call and one checkpoint, as safe as `receive`."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import ThreadStream, stream_from_thread

from ..helpers.inside import Deliveries, state_of
from ..helpers.scripted import PATIENCE, Latch, Native, Scripted, each_native_loop, until


async def all_in_lists(stream: ThreadStream[Any], max_items: int | None = None) -> list[list[Any]]:
    lists = []
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                lists.append(await stream.receive_many(max_items))
            except anyio.EndOfStream:
                return lists


async def test_it_returns_all_that_is_ready_and_takes_one_checkpoint() -> None:
    producer = Scripted(1000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        async with create_task_group() as tg:
            tg.start_soon(other)
            await checkpoint()
            before = turns
            assert await stream.receive_many() == list(range(1000))
            assert turns - before <= 2  # trio shuffles: the other can be first, then last
            with pytest.raises(anyio.EndOfStream):
                await stream.receive_many()
            tg.cancel_scope.cancel()


async def test_a_lone_item_is_taken_without_a_look_for_a_second_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer = Scripted(1)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        state, takes = state_of(stream), 0
        take = state.take

        def counted() -> Any:
            nonlocal takes
            takes += 1
            return take()

        monkeypatch.setattr(state, "take", counted)
        assert await stream.receive_many() == [0]
        assert takes == 1


async def test_it_waits_for_an_item_and_not_for_a_second_one() -> None:
    producer = Scripted(3, allowed=0)
    async with stream_from_thread(producer) as stream:
        for item in range(3):
            async with create_task_group() as tg:
                tg.start_soon(assert_receives_many, stream, [item])
                await anyio.wait_all_tasks_blocked()
                producer.allow(1)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive_many()


async def assert_receives_many(stream: ThreadStream[Any], items: list[Any]) -> None:
    with anyio.fail_after(PATIENCE):
        assert await stream.receive_many() == items


@pytest.mark.parametrize("max_items", [1, 3, 10, 11])
async def test_what_is_more_than_max_items_is_left_for_the_next_call(max_items: int) -> None:
    producer = Scripted(10)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        lists = await all_in_lists(stream, max_items)
        assert [len(items) for items in lists[:-1]] == [max_items] * (len(lists) - 1)
        assert [item for items in lists for item in items] == list(range(10))


async def test_it_mixes_with_receive_and_with_iteration() -> None:
    producer = Scripted(20)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        assert await stream.receive() == 0
        assert await stream.receive_many(4) == [1, 2, 3, 4]
        assert stream.receive_nowait() == 5
        async for item in stream:
            assert item == 6
            break
        assert await stream.receive_many() == list(range(7, 20))


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2"])
async def test_a_max_items_that_cannot_work_is_refused_and_takes_nothing(wrong: Any) -> None:
    async with stream_from_thread(Scripted(2)) as stream:
        with pytest.raises((TypeError, ValueError), match="max_items must be"):
            await stream.receive_many(wrong)
        assert [item for items in await all_in_lists(stream) for item in items] == [0, 1]


async def test_the_error_comes_after_the_items_that_came_before_it() -> None:
    error = ValueError()
    producer = Scripted(9, fails={3: error})
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        assert await stream.receive_many() == [0, 1, 2]
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            await stream.receive_many()
        assert caught.value is error


async def test_a_closed_stream_a_second_receiver_and_a_cancelled_scope_are_as_for_receive() -> None:
    producer = Scripted(3, allowed=0)
    async with stream_from_thread(producer) as stream:
        async with create_task_group() as tg:
            tg.start_soon(stream.receive_many)
            await anyio.wait_all_tasks_blocked()
            for receive in stream.receive, stream.receive_many:
                with pytest.raises(anyio.BusyResourceError):
                    await receive()
            tg.cancel_scope.cancel()
        producer.allow()
        await until(lambda: producer.has_left)
        with CancelScope() as scope:
            scope.cancel()
            await stream.receive_many()
        assert scope.cancelled_caught
        assert await stream.receive_many() == [0, 1, 2]
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive_many()


async def test_a_producer_that_goes_on_does_not_keep_it_from_returning() -> None:
    """What is emitted while the items are taken is for the next call."""

    class Refilled(deque[int]):
        def popleft(self) -> int:
            assert len(taken) < 100
            taken.append(super().popleft())
            self.append(taken[-1] + 3)
            return taken[-1]

    taken: list[int] = []
    latch = Latch(None)
    async with stream_from_thread(latch) as stream:
        assert await stream.receive_many() == [None]
        state_of(stream).pending = Refilled(range(3))
        assert await stream.receive_many() == [0, 1, 2]
        assert await stream.receive_many(2) == [3, 4]
        assert await stream.receive_many() == [5, 6, 7, 8]
        latch.let_go()


async def test_no_item_is_lost_to_deadlines() -> None:
    length = 5000
    rng = random.Random(5)
    received: list[Any] = []
    async with stream_from_thread(Scripted(length)) as stream:
        while len(received) < length:
            with anyio.move_on_after(rng.random() * 0.001):
                received += await stream.receive_many(rng.choice([None, 1, 7]))
    assert received == list(range(length))


@each_native_loop
def test_no_item_is_lost_to_native_cancellation_in_the_tick_of_its_arrival(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: asyncio.Task[list[int]] | None = None
    Deliveries(monkeypatch).act_around(lambda: task and task.cancel())

    async def main() -> list[int]:
        nonlocal task
        received: list[int] = []
        async with stream_from_thread(Scripted(1000)) as stream:
            while True:
                task = asyncio.create_task(stream.receive_many())
                try:
                    received += await task
                except asyncio.CancelledError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(1000))
