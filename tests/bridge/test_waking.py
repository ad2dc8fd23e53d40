"""A bounded stream wakes its producer when half of the room is free, and whenever it must.

In most of these tests the producer never polls, so that only a wake-up can help it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import anyio
import pytest
from anyio import CancelScope
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anystreamer import GenerationStopped, ThreadStream, stream_from_thread
from anystreamer._bridge import StreamState, delivery
from anystreamer._bridge import producer as producer_module

from ..helpers.inside import (
    CROSSING,
    WAITING_FOR_SPACE,
    LoopDeliveries,
    WakeUps,
    hold_back,
    stands_in,
)
from ..helpers.scripted import PATIENCE, Emit, Scripted, ShouldStop, rest, until


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that waits for space checks for it only when it is woken."""
    for name in "SPACE_POLL", "SPACE_POLL_AT_MOST":
        monkeypatch.setattr(producer_module, name, 10 * PATIENCE)


async def until_held(producer: Scripted) -> None:
    """Wait until the producer waits for space."""
    await until(lambda: stands_in(WAITING_FOR_SPACE, producer.thread))


# -- how often


@pytest.mark.parametrize("size", [1, 2, 3, 10, 101, 1000])
async def test_each_wake_up_is_for_half_of_the_room(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 3000
    wake_ups = WakeUps(monkeypatch)
    async with stream_from_thread(Scripted(length), max_buffer_size=size) as stream:
        for item in range(length):
            assert await stream.receive() == item
        assert wake_ups.count <= length / (size - size // 2) + 1


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 11])
async def test_a_producer_is_woken_when_half_of_the_items_are_left(size: int) -> None:
    producer = Scripted(5 * size)
    async with stream_from_thread(producer, max_buffer_size=size) as stream:
        await until_held(producer)
        for _ in range(size - size // 2):
            assert producer.steps == size
            await stream.receive()
        await until(lambda: producer.steps >= size + (size - size // 2))


async def test_a_producer_whose_consumer_is_slow_fills_the_buffer_by_polling() -> None:
    """One item is taken, which is not half of the room."""
    producer = Scripted(100)
    async with stream_from_thread(producer, max_buffer_size=50) as stream:
        await until_held(producer)
        await stream.receive()
        await until(lambda: producer.steps == 51)


async def test_a_producer_that_waits_long_polls_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred full streams that nobody reads must cost next to nothing."""
    waits = WakeUps(monkeypatch).waits
    monkeypatch.setattr(producer_module, "SPACE_POLL", 0.001)
    monkeypatch.setattr(producer_module, "SPACE_POLL_AT_MOST", 0.004)
    producer = Scripted(100)
    async with stream_from_thread(producer, max_buffer_size=1):
        await until(lambda: waits[-3:] == [0.004] * 3)
    assert waits[0] == 0.001
    assert waits == sorted(waits)


# -- crossings


def until_blocked(condition: Callable[[], object]) -> None:
    """Wait while the event loop is blocked: a producer that crosses would not go on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def has_emitted(producer: Scripted, items: int) -> bool:
    """Whether it has emitted so many, and waits for space again, or has come to its end."""
    is_waiting = stands_in(WAITING_FOR_SPACE, producer.thread)
    return producer.steps == items and (is_waiting or producer.has_left)


@pytest.mark.parametrize("size", [1, 2, 10, 1000])
async def test_a_producer_that_waited_for_space_does_not_cross_for_a_consumer_that_is_awake(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CROSSING_CAP", PATIENCE)  # it always has waited lately
    deliveries = LoopDeliveries(monkeypatch)
    producer = Scripted(10 * size)
    async with stream_from_thread(producer, max_buffer_size=size) as stream:
        await until_held(producer)
        assert await stream.receive() == 0
        received = 1
        await until(lambda: producer.steps == size + 1)
        await until_held(producer)
        count = deliveries.count
        while received < 9 * size:
            deliveries.end_delay()  # otherwise it would not cross anyway
            for _ in range(size - size // 2):
                assert stream.receive_nowait() == received
                received += 1
            wanted = min(received + size, 10 * size)
            until_blocked(partial(has_emitted, producer, wanted))
        assert deliveries.count == count
        assert await rest(stream) == list(range(received, 10 * size))


async def test_a_producer_that_has_not_waited_lately_lets_the_loop_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop can be waiting for the GIL, which the thread hands over when it crosses."""
    monkeypatch.setattr(delivery, "CROSSING_CAP", 0.0)
    deliveries = LoopDeliveries(monkeypatch)
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=10) as stream:
        await until_held(producer)
        assert await stream.receive() == 0
        await until(lambda: producer.steps == 11)
        await until_held(producer)
        deliveries.end_delay()
        for item in range(1, 6):
            assert stream.receive_nowait() == item
        until_blocked(lambda: stands_in(CROSSING, producer.thread))


# -- whenever it must


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("many", [False, True])
async def test_nothing_hangs_where_the_producer_never_polls(size: int, many: bool) -> None:
    def produce(emit: Any, should_stop: ShouldStop) -> None:
        if many:
            emit.many(range(1000))  # more than the room
            emit.many(iter(range(1000, 2000)))
        else:
            for item in range(2000):
                emit(item)

    async with stream_from_thread(produce, max_buffer_size=size) as stream:
        with anyio.fail_after(PATIENCE):
            assert await rest(stream) == list(range(2000))


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_several_threads_that_wait_are_all_woken(size: int) -> None:
    threads, each = 4, 200

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        def emit_all(thread: int) -> None:
            for item in range(each):
                emit((thread, item))

        workers = [threading.Thread(target=emit_all, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    async with stream_from_thread(produce, max_buffer_size=size) as stream:
        with anyio.fail_after(PATIENCE):
            received = await rest(stream)
    for number in range(threads):
        assert [item for thread, item in received if thread == number] == list(range(each))


def stop(stream: ThreadStream[Any], scope: CancelScope) -> None:
    stream.stop()


def stop_in_thread(stream: ThreadStream[Any], scope: CancelScope) -> None:
    thread = threading.Thread(target=stream.stop)
    thread.start()
    thread.join()


def cancel(stream: ThreadStream[Any], scope: CancelScope) -> None:
    scope.cancel()


def leave(stream: ThreadStream[Any], scope: CancelScope) -> None:
    raise KeyError


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("way", [stop, stop_in_thread, cancel, leave])
@pytest.mark.parametrize("asks", [True, False])
async def test_a_stop_wakes_a_producer_that_waits_for_space(
    way: Callable[[ThreadStream[Any], CancelScope], None], asks: bool
) -> None:
    producer = Scripted(asks=asks)
    with CancelScope() as scope:
        try:
            async with stream_from_thread(producer, max_buffer_size=4) as stream:
                await until_held(producer)
                way(stream, scope)
                await until(lambda: producer.has_left)
        except KeyError:
            pass
    assert producer.has_left
    assert isinstance(producer.unwound_by, GenerationStopped) is not asks
    assert producer.steps <= 5


@pytest.mark.usefixtures("no_polls")
async def test_aclose_wakes_a_producer_that_waits_for_space() -> None:
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=4) as stream:
        await until_held(producer)
        with anyio.fail_after(PATIENCE):
            await stream.aclose()
        assert producer.has_left


async def test_an_item_that_comes_while_receive_begins_to_wait_is_not_left_to_the_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its producer has found the buffer full, and no receive() that waited."""
    hold_back(monkeypatch, 10 * PATIENCE)
    deliveries = LoopDeliveries(monkeypatch)
    producer = Scripted(allowed=0)
    async with stream_from_thread(producer, max_buffer_size=1) as stream:
        while not deliveries.timer_is_set:
            producer.allow(1)
            await stream.receive()
        has_item = StreamState.has_item

        def find_nothing(state: StreamState[Any]) -> bool:
            monkeypatch.setattr(StreamState, "has_item", has_item)
            producer.allow(1)
            while not stands_in(WAITING_FOR_SPACE, producer.thread):
                time.sleep(0.0002)
            return False

        monkeypatch.setattr(StreamState, "has_item", property(find_nothing))
        with anyio.fail_after(PATIENCE):
            assert await stream.receive() == producer.steps - 1


# -- any schedule


def calls(sizes: list[int]) -> Iterator[list[int]]:
    """The numbers from 0 on, in lists of these sizes."""
    numbers = iter(range(sum(sizes)))
    for size in sizes:
        yield list(islice(numbers, size))


@pytest.mark.usefixtures("no_polls")
@given(
    size=st.integers(1, 9),
    emitted=st.lists(st.integers(0, 12), max_size=12),  # 1: emit(item), otherwise emit.many(items)
    actions=st.lists(
        st.sampled_from(["receive", "nowait", "many", "some", "cancelled", "pause", "stop"]),
        max_size=30,
    ),
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_any_schedule_of_a_bounded_stream_comes_to_its_end(
    size: int, emitted: list[int], actions: list[str]
) -> None:
    """All that was emitted is received, in order, although nobody but the consumer wakes it."""
    made: list[int] = []
    received: list[int] = []

    def produce(emit: Any, should_stop: ShouldStop) -> None:
        for items in calls(emitted):
            if should_stop():
                return
            made.extend(items)
            emit(*items) if len(items) == 1 else emit.many(items)

    with anyio.fail_after(PATIENCE):
        async with stream_from_thread(produce, max_buffer_size=size) as stream:
            for action in actions:
                try:
                    received += await act(stream, action)
                except anyio.EndOfStream:
                    break
            received += chain.from_iterable([[item] async for item in stream])
            with pytest.raises(anyio.EndOfStream):
                await stream.receive_many()
    if "stop" not in actions:
        assert made == list(range(sum(emitted)))
        assert received == made
    assert received == list(range(len(received)))


async def act(stream: ThreadStream[int], action: str) -> list[int]:
    if action == "receive":
        return [await stream.receive()]
    if action in ("many", "some"):
        return await stream.receive_many(None if action == "many" else 2)
    if action == "nowait":
        try:
            return [stream.receive_nowait()]
        except anyio.WouldBlock:
            return []
    if action == "cancelled":
        items: list[int] = []
        with anyio.move_on_after(0):
            items += await stream.receive_many()
        return items
    if action == "stop":
        stream.stop()
    await checkpoint()
    return []
