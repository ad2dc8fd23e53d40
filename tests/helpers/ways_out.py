"""The ways out of the block of a stream, for all tests that leave one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import ThreadStream, stream_from_thread

from .scripted import Scripted, rest


class Body(Exception):
    """What the body of a block raises."""


Stream: TypeAlias = ThreadStream[int]
Way: TypeAlias = Callable[[Stream, Scripted, CancelScope], Awaitable[None]]


async def reaching_the_end(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    producer.length = producer.steps  # and the step in progress, if there is one
    producer.allow()
    await rest(stream)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


async def leaving(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    pass


async def breaking(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    producer.length = producer.steps + 1
    producer.allow()
    async for _ in stream:
        break


async def raising(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    raise Body


async def raising_in_a_child_task(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # theirs
        async with create_task_group() as tg:
            tg.start_soon(raising, stream, producer, outer)
            await rest(stream)
    assert isinstance(caught.value.exceptions[0], Body)
    raise Body


async def cancelled_from_outside(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    async with create_task_group() as tg:
        tg.start_soon(rest, stream)
        await checkpoint()
        outer.cancel()
    await rest(stream)
    raise AssertionError("cancelled, and not told")


async def cancelled_before_the_end(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    outer.cancel()


async def deadline_expired(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    outer.deadline = anyio.current_time()
    await rest(stream)
    raise AssertionError("expired, and not told")


async def stopped(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    stream.stop()
    stream.stop()
    await rest(stream)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


async def stopped_and_left(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    stream.stop()


async def closed(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    await stream.aclose()
    assert not producer.running
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    await stream.aclose()


async def closed_by_its_own_block(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    async with stream:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


async def closed_under_a_waiting_receive(
    stream: Stream, producer: Scripted, outer: CancelScope
) -> None:
    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await rest(stream)

    async with create_task_group() as tg:
        tg.start_soon(wait)
        await checkpoint()
        await stream.aclose()


async def closed_in_a_cancelled_scope(
    stream: Stream, producer: Scripted, outer: CancelScope
) -> None:
    outer.cancel()
    await stream.aclose()


WAYS_OUT = [
    leaving,
    raising,
    raising_in_a_child_task,
    cancelled_from_outside,
    cancelled_before_the_end,
    deadline_expired,
    stopped,
    stopped_and_left,
    closed,
    closed_by_its_own_block,
    closed_under_a_waiting_receive,
    closed_in_a_cancelled_scope,
]
each_way_out = pytest.mark.parametrize("way", WAYS_OUT, ids=lambda way: way.__name__)


async def go(
    way: Way, producer: Scripted, outer: CancelScope, *, receive: int = 0, **arguments: Any
) -> bool:
    """Open a stream, leave it by *way*, and tell whether its producer had left by then."""
    with outer:
        try:
            async with stream_from_thread(producer, **arguments) as stream:
                for expected in range(receive):
                    assert await stream.receive() == expected
                await way(stream, producer, outer)
        except Body:
            pass
        finally:
            joined = not producer.running
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    return joined
