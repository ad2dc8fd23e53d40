"""Promise 5: every item arrives once and in order, whatever is cancelled around it."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import stream_from_thread, stream_iterable

from ..helpers.inside import Deliveries
from ..helpers.scripted import PATIENCE, Native, Scripted, each_native_loop, rest


@pytest.mark.parametrize("max_buffer_size", [1, 2, math.inf])
async def test_a_slow_consumer_gets_everything_in_order(max_buffer_size: float) -> None:
    async with stream_from_thread(Scripted(20), max_buffer_size=max_buffer_size) as stream:
        received: list[Any] = []
        async for item in stream:
            received.append(item)
            for _ in range(item % 4):
                await checkpoint()
    assert received == list(range(20))


async def test_consumers_can_take_turns() -> None:
    received: list[Any] = []
    async with stream_from_thread(Scripted(200)) as stream:
        lock = anyio.Lock()

        async def consume() -> None:
            while True:
                async with lock:
                    try:
                        received.append(await stream.receive())
                    except anyio.EndOfStream:
                        return

        async with create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(consume)
    assert received == list(range(200))


async def test_no_item_is_lost_to_deadlines() -> None:
    length = 2000
    producer = Scripted(length)
    rng = random.Random(2)
    received: list[Any] = []
    async with stream_from_thread(producer) as stream:
        while len(received) < length:
            with anyio.move_on_after(rng.random() * 0.002):
                received.append(await stream.receive())
    assert received == list(range(length))


async def test_no_item_is_lost_to_a_scope_that_is_cancelled_in_the_tick_of_its_arrival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled right before and right after the delivery that wakes the receive()."""
    scope = CancelScope()
    Deliveries(monkeypatch).act_around(lambda: scope.cancel())
    length = 1000
    received: list[Any] = []
    async with stream_from_thread(Scripted(length)) as stream:
        with anyio.fail_after(PATIENCE):
            while len(received) < length:
                with CancelScope() as scope:
                    received.append(await stream.receive())
    assert received == list(range(length))


@each_native_loop
def test_no_item_is_lost_to_native_cancellation(native: Native) -> None:
    async def main() -> list[int]:
        rng = random.Random(3)
        received: list[int] = []
        async with stream_from_thread(Scripted(2000)) as stream:
            while True:
                task = asyncio.create_task(stream.receive())
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    received.append(await task)
                except asyncio.CancelledError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(2000))


@each_native_loop
def test_no_item_is_lost_to_native_cancellation_in_the_tick_of_its_arrival(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: asyncio.Task[int] | None = None
    Deliveries(monkeypatch).act_around(lambda: task and task.cancel())

    async def main() -> list[int]:
        nonlocal task
        received: list[int] = []
        async with stream_from_thread(Scripted(1000)) as stream:
            while True:
                task = asyncio.create_task(stream.receive())
                try:
                    received.append(await task)
                except asyncio.CancelledError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(1000))


@each_native_loop
def test_no_item_is_lost_to_asyncio_timeout(native: Native) -> None:
    async def main() -> list[int]:
        rng = random.Random(4)
        received: list[int] = []
        async with stream_from_thread(Scripted(2000)) as stream:
            while True:
                try:
                    async with asyncio.timeout(rng.random() * 0.002):
                        received.append(await stream.receive())
                except TimeoutError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(2000))


async def test_none_and_other_false_items_are_items() -> None:
    items = [None, 0, "", (), False, StopIteration, anyio.EndOfStream()]
    async with stream_iterable(lambda: items) as stream:
        assert await rest(stream) == items
