"""`ThreadStream.result` and `ThreadStream.ending`: set before the end is seen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from typing import Any

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter, EndOfStream

from anystreamer import Ending, GenerationStopped, stream_from_thread, stream_iterable, stream_text
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PATIENCE, Emit, Scripted, ShouldStop, rest, until
from ..helpers.ways_out import (
    BodyError,
    WayOut,
    cancelled_before_the_end,
    closed,
    each_of,
    each_way_out,
    leaving,
    raising,
    stopped,
    stopped_and_left,
)


async def test_both_are_set_before_the_end_is_seen_and_not_before() -> None:
    producer = Scripted(2, result={"rows": 2})
    async with stream_from_thread(producer) as stream:
        assert (stream.result, stream.ending) == (None, None)
        assert [await stream.receive(), await stream.receive()] == [0, 1]
        await until(lambda: producer.has_left)
        assert (stream.result, stream.ending) == (None, None)
        with pytest.raises(EndOfStream):
            await stream.receive()
        assert (stream.result, stream.ending) == ({"rows": 2}, "ended")
    assert stream.result is producer.result
    assert stream.ending is Ending.ENDED


async def test_the_return_value_of_a_generator() -> None:
    def rows() -> Generator[int, None, str]:
        yield 0
        return "the last"

    async with stream_iterable(rows) as stream:
        assert await rest(stream) == [0]
    assert (stream.result, stream.ending) == ("the last", Ending.ENDED)

    async with stream_iterable(lambda: [0]) as stream:
        assert await rest(stream) == [0]
    assert (stream.result, stream.ending) == (None, Ending.ENDED)


@each_way_out
async def test_a_producer_that_is_stopped_returns_a_result_all_the_same(way: WayOut) -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> str:
        emit(0)
        while not should_stop():
            time.sleep(0.0002)
        return "so far"

    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(produce) as stream:
            await stream.receive()
            await way(stream, scope)
    expected = Ending.STOPPED if way in (stopped, stopped_and_left) else Ending.CANCELLED
    assert (stream.result, stream.ending) == ("so far", expected)


@each_way_out
async def test_a_producer_that_emit_ends_has_no_result(way: WayOut) -> None:
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(Scripted(asks=False, result="never")) as stream:
            await stream.receive()
            await way(stream, scope)
    expected = Ending.STOPPED if way in (stopped, stopped_and_left) else Ending.CANCELLED
    assert (stream.result, stream.ending) == (None, expected)


@each_way_out
async def test_a_generator_that_is_stopped_has_no_result(way: WayOut) -> None:
    def numbers() -> Generator[int, None, str]:
        yield from range(10**9)
        return "never"

    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_iterable(numbers) as stream:
            await stream.receive()
            await way(stream, scope)
    expected = Ending.STOPPED if way in (stopped, stopped_and_left) else Ending.CANCELLED
    assert (stream.result, stream.ending) == (None, expected)


@each_way_out
async def test_a_producer_that_had_returned_has_ended_if_all_was_received(way: WayOut) -> None:
    """Whatever comes after that."""
    producer = Scripted(2, result="all")
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(producer) as stream:
            assert [await stream.receive(), await stream.receive()] == [0, 1]
            await until(lambda: producer.has_left)
            await way(stream, scope)
    assert (stream.result, stream.ending) == ("all", Ending.ENDED)


@pytest.mark.parametrize(
    ("way", "ending"),
    [
        (leaving, Ending.CANCELLED),
        (raising, Ending.CANCELLED),
        (cancelled_before_the_end, Ending.CANCELLED),
        (closed, Ending.CANCELLED),
        (stopped, Ending.ENDED),  # and the rest is received
        (stopped_and_left, Ending.STOPPED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_producer_that_had_returned_has_not_ended_if_an_item_was_not_received(
    way: WayOut, ending: Ending
) -> None:
    producer = Scripted(2, result="all")
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(producer) as stream:
            assert await stream.receive() == 0
            await until(lambda: producer.has_left)
            await way(stream, scope)
    assert (stream.result, stream.ending) == ("all", ending)


@pytest.mark.parametrize("error", [ValueError(), SystemExit(1), GenerationStopped(), EndOfStream()])
async def test_a_producer_that_raises_has_failed(error: BaseException) -> None:
    async with stream_from_thread(Scripted(fails={1: error}, result="never")) as stream:
        assert await stream.receive() == 0
        assert (stream.result, stream.ending) == (None, None)
        with pytest.raises(BaseException):  # noqa: PT011, B017
            await stream.receive()
        assert (stream.result, stream.ending) == (None, Ending.FAILED)
        stream.stop()
    await stream.aclose()
    assert stream.ending is Ending.FAILED


async def test_an_error_that_was_not_received_is_an_ending_too() -> None:
    producer = Scripted(fails={0: ValueError()})
    with pytest.raises(ValueError):  # noqa: PT011
        async with stream_from_thread(producer) as stream:
            await until(lambda: producer.has_left)
            assert stream.ending is None
    assert stream.ending is Ending.FAILED


async def test_a_close_that_fails_at_the_end_is_a_failure() -> None:
    def rows() -> Generator[int, None, str]:
        try:
            yield 0
            return "all"
        finally:
            raise ValueError

    async with stream_iterable(rows) as stream:
        with pytest.raises(ValueError):  # noqa: PT011
            await rest(stream)
    assert (stream.result, stream.ending) == (None, Ending.FAILED)


@each_of(stopped, stopped_and_left)
async def test_one_that_is_stopped_before_its_turn(way: WayOut) -> None:
    limiter = CapacityLimiter(1)
    async with limiter:
        async with stream_from_thread(Scripted(), limiter=limiter) as stream:
            await way(stream, CancelScope())
    assert (stream.result, stream.ending) == (None, Ending.STOPPED)


async def test_one_whose_turn_never_came() -> None:
    limiter = CapacityLimiter(1)
    async with limiter:
        async with stream_from_thread(Scripted(), limiter=limiter) as stream:
            pass
    assert stream.ending is Ending.CANCELLED


async def test_a_consumer_that_waits_for_the_end_in_another_task_sees_the_result() -> None:
    seen: list[Any] = []
    go = threading.Event()

    def produce(emit: Emit, should_stop: ShouldStop) -> str:
        emit(0)
        assert go.wait(PATIENCE)
        return "done"

    async with stream_from_thread(produce) as stream:

        async def consume() -> None:
            async for _ in stream:
                pass
            seen.append((stream.result, stream.ending))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await anyio.wait_all_tasks_blocked()
            go.set()
    assert seen == [("done", Ending.ENDED)]


# -- streams of text have both, too


@pytest.mark.parametrize(
    ("tokens", "act", "ending"),
    [
        (["a"], lambda stream: None, Ending.ENDED),
        (["a "] * 100_000, lambda stream: stream.stop(), Ending.STOPPED),
        (["a", ValueError()], lambda stream: None, Ending.FAILED),
    ],
    ids=["ended", "stopped", "failed"],
)
async def test_a_stream_of_text(tokens: Any, act: Any, ending: Ending) -> None:
    model = ScriptedModel(tokens, delay=0.0005)
    async with stream_text(model, model.tokenizer, "hi") as stream:
        await stream.receive()
        assert (stream.ending, stream.result) == (None, None)
        act(stream)
        with contextlib.suppress(ValueError):
            await stream.read()
        assert stream.ending is ending
    assert stream.result is stream.output


async def test_a_stream_of_text_that_is_left_early() -> None:
    model = ScriptedModel(["a "] * 100_000, delay=0.0005)
    async with stream_text(model, model.tokenizer, "hi") as stream:
        await stream.receive()
    assert stream.ending is Ending.CANCELLED
    assert stream.result is stream.output
