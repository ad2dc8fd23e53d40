"""Promise 2: a producer that is to stop takes at most one more step."""

from __future__ import annotations

import signal
import threading
import time

import anyio
from anyio import CancelScope
from anyio.lowlevel import checkpoint

from anystreamer import GenerationStopped, stream_from_thread

from ..helpers.scripted import Emit, Scripted, ShouldStop, rest, until
from ..helpers.ways_out import WayOut, each_way_out, leave_by


@each_way_out
async def test_a_producer_that_never_asks_is_unwound_by_emit(way: WayOut) -> None:
    producer = Scripted(asks=False)
    assert await leave_by(way, producer, CancelScope(), receive=1)
    assert producer.has_left
    assert isinstance(producer.unwound_by, GenerationStopped)


async def test_stop_keeps_all_items_made_so_far() -> None:
    producer = Scripted(allowed=5)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.steps == 5)
        stream.stop()
        at_stop = producer.steps
        items = await rest(stream)
    assert items == list(range(producer.steps))
    assert producer.steps <= at_stop + 1


async def test_a_producer_that_catches_what_emit_raises_can_clean_up_and_return() -> None:
    cleaned_up = []

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        try:
            for item in range(10**9):
                emit(item)
        except GenerationStopped:
            assert should_stop()
            cleaned_up.append(threading.get_ident())

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == 0
    assert cleaned_up
    assert cleaned_up != [threading.get_ident()]


async def test_stop_is_safe_from_a_thread() -> None:
    producer = Scripted(allowed=2)
    async with stream_from_thread(producer) as stream:
        assert [await stream.receive(), await stream.receive()] == [0, 1]
        thread = threading.Thread(target=stream.stop)
        thread.start()
        assert await rest(stream) in ([], [2])
        thread.join()
    assert producer.has_left


async def test_stop_is_safe_in_a_signal_handler() -> None:
    producer = Scripted(allowed=2)
    async with stream_from_thread(producer) as stream:
        handler = signal.signal(signal.SIGTERM, lambda *_: stream.stop())
        try:
            assert [await stream.receive(), await stream.receive()] == [0, 1]
            signal.raise_signal(signal.SIGTERM)
            assert await rest(stream) in ([], [2])
        finally:
            signal.signal(signal.SIGTERM, handler)
    assert producer.has_left


class Silent:
    """A producer that takes steps and emits nothing: only should_stop() can stop it."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        while not should_stop():
            time.sleep(0.001)
            self.steps += 1


async def test_a_cancelled_scope_is_seen_while_the_loop_is_blocked() -> None:
    producer = Silent()
    with CancelScope() as scope:
        async with stream_from_thread(producer):
            await until(lambda: producer.steps)
            scope.cancel()
            at_cancel = producer.steps
            time.sleep(0.1)
            after = producer.steps
    assert after <= at_cancel + 1
    assert producer.steps <= at_cancel + 1


async def test_stop_is_seen_while_the_loop_is_blocked() -> None:
    producer = Silent()
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.steps)
        stream.stop()
        at_stop = producer.steps
        time.sleep(0.1)
        assert producer.steps <= at_stop + 1


async def test_a_cancelled_scope_is_seen_behind_a_shielded_consumer() -> None:
    """The consumer goes on, and comes to the end. What was made before is its own."""
    producer = Scripted(allowed=3)
    with CancelScope() as outer:
        async with stream_from_thread(producer) as stream:
            await until(lambda: producer.steps == 3)
            with CancelScope(shield=True):
                outer.cancel()
                items = await rest(stream)
                assert producer.has_left
        await checkpoint()  # the end of a trio nursery is not a checkpoint
    assert outer.cancelled_caught
    assert items == [0, 1, 2]
    assert producer.steps <= 4


async def test_a_shield_around_the_block_protects_its_producer() -> None:
    with CancelScope() as outer, CancelScope(shield=True):
        outer.cancel()
        async with stream_from_thread(Scripted(5)) as stream:
            assert await rest(stream) == [0, 1, 2, 3, 4]


async def test_a_scope_inside_the_block_ends_a_receive_and_not_the_producer() -> None:
    producer = Scripted(3, allowed=0)
    async with stream_from_thread(producer) as stream:
        with CancelScope() as inner:
            inner.cancel()
            await stream.receive()
        assert inner.cancelled_caught
        with anyio.move_on_after(0.01):
            await stream.receive()
        producer.allow()
        assert await rest(stream) == [0, 1, 2]
