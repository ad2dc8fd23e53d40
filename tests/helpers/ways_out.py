"""The ways out of the block of a stream, for all tests that leave one.

Each is for streams of every kind: it goes on in the body of the block, whose end is right after it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import stream_from_thread

from .inside import worker_left
from .scripted import PATIENCE, Scripted, rest


class BodyError(Exception):
    """What the body of a block raises."""


# The stream, and a scope around its block. All but `raising` and those that cancel return.
WayOut: TypeAlias = Callable[[Any, CancelScope], Coroutine[Any, Any, None]]


async def reaching_the_end(stream: Any, outer: CancelScope) -> None:
    with pytest.raises(anyio.EndOfStream):
        while True:  # a loop over a stream that has been read to its end would be an error
            await stream.receive()


async def leaving(stream: Any, outer: CancelScope) -> None:
    """As `break`, `return` and the end of the body do."""


async def breaking(stream: Any, outer: CancelScope) -> None:
    async for _ in stream:
        break


async def raising(stream: Any, outer: CancelScope) -> None:
    raise BodyError


async def raising_in_a_child_task(stream: Any, outer: CancelScope) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # the task group's
        async with create_task_group() as tg:
            tg.start_soon(raising, stream, outer)
            await rest(stream)
    assert isinstance(caught.value.exceptions[0], BodyError)
    raise BodyError


async def cancelled_from_outside(stream: Any, outer: CancelScope) -> None:
    async with create_task_group() as tg:
        tg.start_soon(rest, stream)
        await checkpoint()
        outer.cancel()
    await checkpoint()
    raise AssertionError("the cancellation was not raised")


async def cancelled_before_the_end(stream: Any, outer: CancelScope) -> None:
    outer.cancel()


async def deadline_expired(stream: Any, outer: CancelScope) -> None:
    outer.deadline = anyio.current_time()
    await rest(stream)
    # What ends just then returns, and is not cancelled: the next checkpoint is.
    await anyio.sleep(PATIENCE)
    raise AssertionError("the cancellation was not raised")


async def stopped(stream: Any, outer: CancelScope) -> None:
    stream.stop()
    stream.stop()
    await reaching_the_end(stream, outer)


async def stopped_and_left(stream: Any, outer: CancelScope) -> None:
    stream.stop()


async def closed(stream: Any, outer: CancelScope) -> None:
    await stream.aclose()
    assert worker_left(stream)
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    await stream.aclose()


async def closed_by_its_own_block(stream: Any, outer: CancelScope) -> None:
    async with stream:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


async def closed_under_a_waiting_receive(stream: Any, outer: CancelScope) -> None:
    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await rest(stream)

    async with create_task_group() as tg:
        tg.start_soon(wait)
        await checkpoint()
        await stream.aclose()


async def closed_in_a_cancelled_scope(stream: Any, outer: CancelScope) -> None:
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
# What was not received before they are taken is not received at all.
WAYS_THAT_CANCEL = [way for way in WAYS_OUT if way not in (stopped, stopped_and_left)]


def each_of(*ways: WayOut) -> pytest.MarkDecorator:
    """Run a test once for each of these, as its argument ``way``."""
    return pytest.mark.parametrize("way", ways, ids=lambda way: way.__name__)


each_way_out = each_of(*WAYS_OUT)


async def leave_by(
    way: WayOut, producer: Scripted, outer: CancelScope, *, receive: int = 0, **arguments: Any
) -> bool:
    """Open a stream and leave it by *way*. Returns whether its producer had left by then."""
    with outer:
        try:
            async with stream_from_thread(producer, **arguments) as stream:
                for expected in range(receive):
                    assert await stream.receive() == expected
                await way(stream, outer)
                if "closed" in repr(stream):
                    assert not producer.running
        except BodyError:
            pass
        finally:
            joined = not producer.running
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    return joined
