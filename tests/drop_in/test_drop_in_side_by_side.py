"""Drop-in streamers beside each other: one thread delivers for all, and none disturbs another."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from anystreamer import AsyncTextIteratorStreamer

from ..helpers.scripted import PATIENCE

STREAMS = 8


class Numbers:
    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(f"{each} " for each in ids)


@pytest.fixture
def delivering() -> Callable[[], int]:
    """How many threads deliver, without those of other tests: one may be stuck."""

    def threads() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name == "anystreamer delivery"}

    before = threads()
    return lambda: len(threads() - before)


def new() -> AsyncTextIteratorStreamer:
    return AsyncTextIteratorStreamer(Numbers())


def put_until(streamer: AsyncTextIteratorStreamer, is_over: Callable[[], bool]) -> None:
    number = 0
    while not is_over():
        streamer.put([number])
        number += 1
    streamer.end()


def in_a_thread(function: Callable[..., object], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            gc.collect()
            await anyio.sleep(0.001)


async def test_one_thread_delivers_all_texts_in_their_order(
    delivering: Callable[[], int],
) -> None:
    expected = Numbers().decode(list(range(300)))
    seen = []

    def produce(streamer: AsyncTextIteratorStreamer) -> None:
        for number in range(300):
            streamer.put([number])
        streamer.end()

    async def read(streamer: AsyncTextIteratorStreamer) -> None:
        text = ""
        async for piece in streamer:
            text += piece
            seen.append(delivering())
        assert text == expected

    streamers = [new() for _ in range(STREAMS)]
    threads = [in_a_thread(produce, streamer) for streamer in streamers]
    async with anyio.create_task_group() as tasks:
        for streamer in streamers:
            tasks.start_soon(read, streamer)
    await until(lambda: not any(thread.is_alive() for thread in threads))
    assert max(seen) <= 1
    await until(lambda: delivering() == 0)


async def test_a_text_that_is_never_ended_is_noticed_beside_one_that_always_has_something() -> None:
    is_over = threading.Event()
    busy, failing = new(), new()
    threads = [in_a_thread(put_until, busy, is_over.is_set), in_a_thread(failing.put, [1])]

    async def read_busy() -> None:
        async for _ in busy:
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_busy)
        with anyio.fail_after(PATIENCE):
            assert await anext(failing) == "1 "
            with pytest.raises(RuntimeError, match="in a thread that has ended"):
                await anext(failing)
        is_over.set()
    await until(lambda: not any(thread.is_alive() for thread in threads))


async def test_one_that_was_dropped_is_forgotten_while_another_goes_on() -> None:
    is_over = threading.Event()
    going_on, dropped = new(), new()
    thread = in_a_thread(put_until, going_on, is_over.is_set)
    in_a_thread(dropped.put, [1]).join()
    assert await anext(dropped) == "1 "
    seen = weakref.ref(dropped)
    await dropped.aclose()
    del dropped
    await until(lambda: seen() is None)
    assert [await anext(going_on) for _ in range(3)] == ["0 ", "1 ", "2 "]
    is_over.set()
    async for _ in going_on:
        pass
    await until(lambda: not thread.is_alive())


async def test_a_closed_one_takes_nothing_and_others_are_received(
    delivering: Callable[[], int],
) -> None:
    closed, other = new(), new()
    await closed.aclose()
    in_a_thread(put_until, closed, lambda: True).join()
    in_a_thread(other.put, [1]).join()
    assert await anext(other) == "1 "
    await other.aclose()
    await until(lambda: delivering() == 0)
