"""After `aclose()` or the end of its block, a stream keeps no item that was not received."""

from __future__ import annotations

import gc
import weakref

import anyio
import pytest

from anystreamer import stream_from_thread

from ..helpers.scripted import Emit, ShouldStop, until


class Item:
    """Can be referred to weakly."""


@pytest.mark.parametrize("way", ["aclose", "leave"])
async def test_items_that_were_not_received_are_dropped(way: str) -> None:
    items: weakref.WeakSet[Item] = weakref.WeakSet()

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        for _ in range(60):
            items.add(item := Item())
            emit(item)
        del item

    context = stream_from_thread(produce)
    async with context as stream:
        received = [await stream.receive() for _ in range(5)]
        await until(lambda: "ended" in repr(stream))
        if way == "aclose":
            await stream.aclose()
            gc.collect()
            assert set(items) == set(received)
    gc.collect()
    assert set(items) == set(received)
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
