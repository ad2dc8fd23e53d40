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


async def test_emit_from_another_thread_is_refused() -> None:
    errors = []

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        def foreign() -> None:
            assert not should_stop()  # this can be called from anywhere
            try:
                emit("foreign")
            except RuntimeError as exc:
                errors.append(exc)

        thread = threading.Thread(target=foreign)
        thread.start()
        thread.join()
        emit("own")

    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == ["own"]
        emit_on_the_loop = errors  # by now
    assert len(emit_on_the_loop) == 1
    assert "thread" in str(errors[0])


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
