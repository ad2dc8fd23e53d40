"""Promise 5: a receive() that waits is woken by what comes, by the end and by the close."""

from __future__ import annotations

import anyio
import pytest
from anyio import create_task_group

from anystreamer import ThreadStream, stream_from_thread

from ..helpers.inside import Deliveries
from ..helpers.scripted import PATIENCE, Latch, Scripted, rest, until


async def test_items_emitted_before_a_stall_arrive_during_the_stall() -> None:
    """The crossing budget holds items back, but not until the producer's next item."""
    for size in [1, 2, 3, 10, 100, 1000]:
        latch = Latch(*range(size))
        async with stream_from_thread(latch) as stream:
            with anyio.fail_after(PATIENCE):
                assert [await stream.receive() for _ in range(size)] == list(range(size))
            assert latch.running
            latch.let_go()
            assert await rest(stream) == []


async def test_items_emitted_before_a_stall_arrive_at_a_consumer_that_comes_later() -> None:
    latch = Latch(*range(100))
    async with stream_from_thread(latch, max_buffer_size=1000) as stream:
        await until(latch.holding.is_set)
        with anyio.fail_after(PATIENCE):
            assert [await stream.receive() for _ in range(100)] == list(range(100))
        latch.let_go()


async def test_a_receive_that_waits_for_a_silent_producer_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks for items that are held back, and then stops: thousands of streams can wait."""
    deliveries = Deliveries(monkeypatch)
    latch = Latch("item")
    async with stream_from_thread(latch) as stream:
        assert await stream.receive() == "item"
        await until(latch.holding.is_set)
        deliveries.count = 0
        with anyio.move_on_after(0.1):
            await stream.receive()
        latch.let_go()
        assert deliveries.count <= 3


async def test_the_end_and_the_close_wake_a_waiting_receive() -> None:
    latch = Latch()
    async with stream_from_thread(latch) as stream:

        async def wait() -> None:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

        async with create_task_group() as tg:
            tg.start_soon(wait)
            await until(latch.holding.is_set)
            latch.let_go()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_a_receive_that_waits_while_the_block_is_left_is_woken() -> None:
    outcome = []

    async def wait(stream: ThreadStream[int]) -> None:
        try:
            await stream.receive()
        except (anyio.ClosedResourceError, anyio.EndOfStream) as exc:
            outcome.append(exc)

    async with create_task_group() as tg:
        async with stream_from_thread(Scripted(allowed=0)) as stream:
            tg.start_soon(wait, stream)
            await anyio.wait_all_tasks_blocked()
    assert len(outcome) == 1


async def test_a_producer_without_items_ends_at_once() -> None:
    async with stream_from_thread(Scripted(0)) as stream:
        assert await rest(stream) == []
