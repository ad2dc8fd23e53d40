"""Promise 11: what cannot be streamed or opened is refused at once, with the right form."""

from __future__ import annotations

import functools
import gc
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter

from anystreamer import stream_from_thread, stream_iterable

from ..helpers.scripted import Emit, Scripted, ShouldStop, rest


async def an_async_function(emit: Emit, should_stop: ShouldStop) -> None:
    raise AssertionError


async def an_async_generator_function(emit: Emit, should_stop: ShouldStop) -> Any:
    yield


def a_generator_function(emit: Emit, should_stop: ShouldStop) -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "produce",
    [
        None,
        "text",
        [1, 2, 3],
        an_async_function,
        functools.partial(an_async_function),
        AsyncCallable(),
        an_async_generator_function,
        a_generator_function,
    ],
    ids=lambda produce: getattr(produce, "__name__", type(produce).__name__),
)
def test_a_producer_that_is_not_a_blocking_function_is_refused_at_once(produce: Any) -> None:
    with pytest.raises(TypeError, match=r"produce\(emit, should_stop\)"):
        stream_from_thread(produce)


@pytest.mark.parametrize("made", [[1, 2], range(3), iter("abc"), (i for i in "abc"), None])
def test_an_iterable_in_place_of_a_function_that_makes_one_is_refused_at_once(made: Any) -> None:
    with pytest.raises(TypeError, match=r"stream_iterable\(lambda"):
        stream_iterable(made)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_a_wrong_limiter_is_refused_at_once(opener: Any) -> None:
    for limiter in [1, threading.Lock(), anyio.Semaphore(1), CapacityLimiter]:
        with pytest.raises(TypeError, match=r"anyio\.CapacityLimiter"):
            opener(lambda *_: [], limiter=limiter)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_a_wrong_buffer_size_is_refused_at_once(opener: Any) -> None:
    for size in [0, -1, -math.inf]:
        with pytest.raises((ValueError, TypeError), match="max_buffer_size"):
            opener(lambda *_: [], max_buffer_size=size)
    for wrong in [1.5, math.nan, "1", None, True]:
        with pytest.raises(TypeError, match="max_buffer_size"):
            opener(lambda *_: [], max_buffer_size=wrong)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
async def test_the_unopened_object_shows_how_to_open_it(opener: Any) -> None:
    right_form = rf"async with {opener.__name__}\(\.\.\.\) as stream"
    unopened = opener(lambda *_: [])
    with pytest.raises(TypeError, match=right_form):
        async for _ in unopened:
            pass
    with pytest.raises(TypeError, match=right_form):
        await unopened
    with pytest.raises(TypeError, match=right_form), unopened:
        pass
    with pytest.raises(TypeError, match=right_form):
        for _ in unopened:
            pass
    async with unopened as stream:
        assert await rest(stream) == []


async def test_a_context_cannot_be_opened_twice() -> None:
    context = stream_from_thread(Scripted(2))
    async with context as stream:
        with pytest.raises(RuntimeError, match=r"stream_from_thread\(\) has been opened before"):
            async with context:
                pass
        assert await rest(stream) == [0, 1]
    with pytest.raises(RuntimeError, match="call it again"):
        async with context:
            pass


def test_without_a_running_loop_opening_fails_and_leaves_nothing_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opening = stream_from_thread(Scripted()).__aenter__()
        with pytest.raises(RuntimeError, match=r"event loop|not in async context"):
            opening.send(None)
        del opening
        gc.collect()


def test_a_context_that_is_never_opened_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        context = stream_from_thread(Scripted())
        del context
        gc.collect()
