"""A drop-in streamer that is dropped and not closed: the garbage collector takes all of it."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import Any

import anyio
from anyio import to_thread

from anystreamer import AsyncTextIteratorStreamer

from ..helpers.scripted import PATIENCE


class Letters:
    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "x" * len(ids)


def collect() -> None:
    for _ in range(3):
        gc.collect()


async def test_its_parts_are_collected_in_any_order(unraisable: list[Any]) -> None:
    """CPython calls finalizers in the order of a list that each collection may change."""
    for _ in range(3):
        streamer: Any = AsyncTextIteratorStreamer(Letters())
        parts = [streamer._queue._state.buffer_receive, streamer._queue._state.buffer_send]
        cycle = [streamer]
        streamer.cycle = cycle
        holder = [cycle]
        del streamer, cycle
        collect()  # the streamer goes to the end of the list: it is reached through its holder
        del parts, holder
        collect()
    assert unraisable == []


async def test_an_error_that_nothing_has_read_keeps_nothing_alive(unraisable: list[Any]) -> None:
    """Its traceback leads to the streamer."""

    def fail(streamer: AsyncTextIteratorStreamer) -> None:
        with suppress(KeyError), AsyncTextIteratorStreamer._watch(streamer):
            streamer.put([1])
            streamer.put([1])
            raise KeyError

    streamer = AsyncTextIteratorStreamer(Letters(), skip_prompt=True)
    await to_thread.run_sync(fail, streamer)
    with anyio.fail_after(PATIENCE):
        while not streamer.text_queue.qsize():  # delivered, and not received
            await anyio.sleep(0.001)
    dropped = weakref.ref(streamer)
    del streamer
    with anyio.fail_after(PATIENCE):
        while dropped() is not None:  # the delivery thread may be about to end
            gc.collect()
            await anyio.sleep(0.001)
    assert unraisable == []
