"""All streams of an event loop share one delivery: who crosses takes along what the others have."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from anyio import create_task_group

from anystreamer import ThreadStream, stream_from_thread

from ..helpers.inside import CROSSING, LoopDeliveries, hold_back, stands_in, state_of
from ..helpers.scripted import PATIENCE, Emit, ShouldStop, until


class Emitter:
    """A producer that emits an item each time that a test tells it to."""

    def __init__(self) -> None:
        self.emitted = 0
        self.thread = 0
        self._wanted = 0

    def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        self.thread = threading.get_ident()
        while not should_stop():
            if self.emitted < self._wanted:
                emit(self.emitted)
                self.emitted += 1
            else:
                time.sleep(0.0002)

    def emit_soon(self, items: int = 1) -> None:
        self._wanted += items

    async def emit(self, items: int = 1) -> None:
        """Returns when the producer has returned from ``emit``."""
        self.emit_soon(items)
        await until(lambda: self.emitted == self._wanted)


class Reader:
    """A stream whose items are received as soon as they are delivered."""

    def __init__(self) -> None:
        self.producer = Emitter()
        self.received: list[int] = []
        self.stream: ThreadStream[int]
        self._leave = anyio.Event()
        self.left = anyio.Event()

    async def run(self, opened: Callable[[], object]) -> None:
        async with (
            stream_from_thread(self.producer) as self.stream,
            create_task_group() as tg,
        ):
            tg.start_soon(self._receive)
            opened()
            await self._leave.wait()
            tg.cancel_scope.cancel()
        self.left.set()

    async def _receive(self) -> None:
        async for item in self.stream:
            self.received.append(item)

    async def leave(self) -> None:
        self._leave.set()
        await self.left.wait()


@asynccontextmanager
async def readers(count: int) -> AsyncIterator[list[Reader]]:
    """Several streams, each of which has got its first item."""
    each = [Reader() for _ in range(count)]
    async with create_task_group() as tg:
        for reader in each:
            opened = anyio.Event()
            tg.start_soon(reader.run, opened.set)
            await opened.wait()
            await reader.producer.emit()
            await until(lambda reader=reader: reader.received == [0])  # type: ignore[misc]
        yield each
        for reader in each:
            await reader.leave()


async def begin_burst(reader: Reader, deliveries: LoopDeliveries) -> None:
    """Emit until an item is held back, which the others of the loop share."""
    while not deliveries.timer_is_set:
        await reader.producer.emit()


async def test_a_first_item_does_not_wait_for_the_burst_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_back(monkeypatch, PATIENCE)
    deliveries = LoopDeliveries(monkeypatch)
    async with readers(1) as (one,):
        await begin_burst(one, deliveries)
        async with readers(1) as (other,):
            assert other.received == [0]
        assert deliveries.timer_is_set


async def test_the_next_crossing_of_any_thread_takes_along_what_all_have_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_back(monkeypatch, PATIENCE)
    deliveries = LoopDeliveries(monkeypatch)
    async with readers(4) as (bursting, *others):
        await begin_burst(bursting, deliveries)
        before = [len(other.received) for other in others]
        for other in others:
            await other.producer.emit()
            assert state_of(other.stream).pending
        deliveries.end_delay()
        count = deliveries.count
        await bursting.producer.emit()
        await until(
            lambda: [len(other.received) for other in others] == [each + 1 for each in before]
        )
        assert deliveries.count == count + 1


async def test_the_loop_delivers_what_the_stall_of_all_producers_leaves_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deliveries = LoopDeliveries(monkeypatch)
    async with readers(3) as streams:
        for _ in range(20):
            for reader in streams:
                reader.producer.emit_soon(7)
            await until(lambda: all(r.producer.emitted == len(r.received) for r in streams))
        await until(lambda: not deliveries.timer_is_set)


async def test_a_stream_that_ends_leaves_its_timer_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_back(monkeypatch, 0.2)
    deliveries = LoopDeliveries(monkeypatch)
    async with readers(3) as (first, second, third):
        await begin_burst(third, deliveries)
        await second.producer.emit()
        await first.leave()
        await until(lambda: len(second.received) == second.producer.emitted)
        await begin_burst(third, deliveries)
        await third.producer.emit()
        await second.leave()
        await until(lambda: len(third.received) == third.producer.emitted)
    assert deliveries.is_empty


async def test_a_thread_does_not_wait_for_the_crossing_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop is blocked, and one thread waits for it. The others go on."""
    async with readers(3) as (crossing, *others):
        crossing.producer.emit_soon()
        deadline = time.monotonic() + PATIENCE
        while not stands_in(CROSSING, crossing.producer.thread):
            crossing.producer.emit_soon()
            time.sleep(0.001)  # the loop is blocked
            assert time.monotonic() < deadline
        wanted = [other.producer.emitted + 1000 for other in others]
        for other in others:
            other.producer.emit_soon(1000)
        while [other.producer.emitted for other in others] != wanted:
            time.sleep(0.001)
            assert time.monotonic() < deadline
        assert stands_in(CROSSING, crossing.producer.thread)
        await until(lambda: [len(other.received) for other in others] == wanted)


async def test_an_item_that_comes_while_a_crossing_ends_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread finds another one crossing, whose delivery was just over."""
    deliveries = LoopDeliveries(monkeypatch)

    def emit_and_return() -> None:  # on the loop, which the crossing thread waits for
        wanted = other.producer.emitted + 1
        other.producer.emit_soon()
        deadline = time.monotonic() + PATIENCE
        while other.producer.emitted < wanted:
            time.sleep(0.0002)
            assert time.monotonic() < deadline

    async with readers(2) as (crossing, other):
        await until(lambda: not deliveries.timer_is_set)
        await anyio.sleep(0.05)  # longer than a burst
        deliveries.after_next = emit_and_return
        await crossing.producer.emit()
        await until(lambda: len(other.received) == other.producer.emitted == 2)


async def test_nothing_is_kept_of_streams_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    deliveries = LoopDeliveries(monkeypatch)
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(readers(5))
        for reader in streams:
            reader.producer.emit_soon(100)
        for reader in streams[::2]:
            await reader.leave()
        assert not deliveries.is_empty
    assert deliveries.is_empty
