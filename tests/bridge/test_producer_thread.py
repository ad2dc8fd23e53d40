"""The producer's thread: its context variables, its way to the loop, and emit()."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
import sniffio
from anyio import from_thread
from anyio.lowlevel import checkpoint

from anystreamer import GenerationStopped, stream_from_thread

from ..helpers.scripted import Emit, Scripted, ShouldStop, rest

context_variable: contextvars.ContextVar[str] = contextvars.ContextVar("context_variable")


async def test_the_producer_sees_the_openers_context_variables() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(context_variable.get())
        context_variable.set("the thread's own")

    context_variable.set("the opener's")
    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == ["the opener's"]
    assert context_variable.get() == "the opener's"


async def test_the_producer_can_call_into_the_loop() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(from_thread.run_sync(threading.get_ident))
        emit(from_thread.run(a_coroutine))

    async def a_coroutine() -> str:
        await checkpoint()
        return sniffio.current_async_library()

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == threading.get_ident()
        assert await stream.receive() == sniffio.current_async_library()


async def test_the_producer_can_run_a_loop_of_its_own_and_emit_from_it() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        async def inner() -> None:
            for item in range(3):
                await asyncio.sleep(0)
                assert not should_stop()
                emit(item)

        asyncio.run(inner())

    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == [0, 1, 2]


async def test_other_threads_can_emit_while_the_producer_runs() -> None:
    """As callbacks of engines do. The items of each thread keep their order."""

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        def foreign(name: int) -> None:
            for number in range(200):
                assert not should_stop()
                emit((name, number))

        threads = [threading.Thread(target=foreign, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for number in range(200):
            emit((4, number))
        for thread in threads:
            thread.join()

    async with stream_from_thread(produce, max_buffer_size=7) as stream:
        received = await rest(stream)
    assert len(received) == 1000
    for name in range(5):
        assert [number for each, number in received if each == name] == list(range(200))


async def test_emit_in_the_event_loop_is_refused() -> None:
    """It would wait for itself."""

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            from_thread.run_sync(emit, "item")

    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == []


async def test_emit_after_the_producers_end_is_refused() -> None:
    """By another producer in the same thread too: threads are used again."""
    kept: list[Emit] = []

    def keep(emit: Emit, should_stop: ShouldStop) -> None:
        kept.append(emit)
        emit(threading.get_ident())

    def use(emit: Emit, should_stop: ShouldStop) -> None:
        emit(threading.get_ident())
        with pytest.raises((RuntimeError, GenerationStopped)):
            kept[0]("late")

    same_thread = False
    while not same_thread:
        kept.clear()
        async with stream_from_thread(keep) as first:
            (one,) = await rest(first)
        async with stream_from_thread(use) as second:
            (other,) = await rest(second)
        same_thread = one == other
    with pytest.raises((RuntimeError, GenerationStopped)):
        kept[0]("late, and on the loop")


async def test_a_thread_that_ends_is_not_needed_again() -> None:
    """Many streams one after the other share the loop's idle threads."""
    threads = set()
    for _ in range(50):
        producer = Scripted(1)
        async with stream_from_thread(producer) as stream:
            await rest(stream)
        threads.add(producer.thread)
    assert len(threads) <= 10
