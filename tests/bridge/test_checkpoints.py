"""Promise 10: every receive() is a checkpoint, and only one task receives at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import stream_from_thread

from ..helpers.scripted import Scripted, rest, until


async def test_other_tasks_run_between_two_receives_although_items_are_ready() -> None:
    producer = Scripted(50)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async def gives_turns(receive: Callable[[], Awaitable[object]]) -> bool:
        """Whether it is a checkpoint. trio shuffles: the other can be first, then last."""
        before = turns
        for _ in range(3):
            with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError):
                await receive()
        return turns > before

    async with stream_from_thread(producer) as stream, create_task_group() as tg:
        await until(lambda: producer.has_left)
        tg.start_soon(other)
        for _ in range(16):
            assert await gives_turns(stream.receive)
        assert await rest(stream) == [48, 49]
        assert await gives_turns(stream.receive)  # at the end
        assert await gives_turns(stream.aclose)
        assert await gives_turns(stream.receive)  # closed
        tg.cancel_scope.cancel()


@pytest.mark.parametrize("state", ["ready", "waiting", "ended", "failed", "closed"])
async def test_a_cancelled_receive_raises_in_each_state_and_takes_nothing(state: str) -> None:
    producer = Scripted(
        0 if state == "ended" else 3,
        allowed=0 if state == "waiting" else math.inf,
        fails={0: ValueError()} if state == "failed" else None,
    )
    async with stream_from_thread(producer) as stream:
        if state != "waiting":
            await until(lambda: producer.has_left)
        if state == "closed":
            await stream.aclose()
        for _ in range(2):
            with CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            assert scope.cancelled_caught
        producer.allow()
        if state == "failed":
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
        elif state == "closed":
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
        else:
            assert await rest(stream) == list(range(producer.steps))


async def test_a_second_receive_at_once_is_refused_and_harms_nothing() -> None:
    producer = Scripted(2, allowed=0)
    received: list[Any] = []

    async def receive() -> None:
        received.append(await stream.receive())

    async with stream_from_thread(producer) as stream:
        async with create_task_group() as tg:
            tg.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            for _ in range(2):
                with pytest.raises(anyio.BusyResourceError, match="receiving from"):
                    await stream.receive()
            producer.allow()
        received += await rest(stream)
    assert received == [0, 1]


async def test_a_receive_that_was_cancelled_does_not_keep_the_next_one_busy() -> None:
    producer = Scripted(2, allowed=0)
    async with stream_from_thread(producer) as stream:
        with anyio.move_on_after(0.001):
            await stream.receive()
        producer.allow()
        assert await rest(stream) == [0, 1]
