"""Promise 11: what cannot be streamed or opened is refused at once, with the right form."""

from __future__ import annotations

import functools
import gc
import math
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter

from anystreamer import Ending, stream_from_thread, stream_iterable

from ..helpers.logged import logged_by_us
from ..helpers.scripted import Emit, Scripted, ShouldStop, rest


async def an_async_function(emit: Emit, should_stop: ShouldStop) -> None:
    raise AssertionError


async def an_async_generator_function(emit: Emit, should_stop: ShouldStop) -> Any:
    yield


def a_generator_function(emit: Emit, should_stop: ShouldStop) -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self, *args: Any) -> None:
        raise AssertionError


class GeneratorCallable:
    def __call__(self, *args: Any) -> Iterator[None]:
        yield


class Methods:
    async def an_async_method(self, *args: Any) -> None:
        raise AssertionError

    @staticmethod
    async def an_async_staticmethod(*args: Any) -> None:
        raise AssertionError


ASYNC_FUNCTIONS = [
    an_async_function,
    functools.partial(an_async_function),
    functools.partial(functools.partial(an_async_function)),
    AsyncCallable(),
    functools.partial(AsyncCallable()),
    AsyncCallable().__call__,
    types.MethodType(AsyncCallable(), 1),
    an_async_generator_function,
    Methods().an_async_method,
    Methods.an_async_staticmethod,
]
GENERATOR_FUNCTIONS = [
    a_generator_function,
    GeneratorCallable(),
    functools.partial(GeneratorCallable()),
]


def shown(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__))


@pytest.mark.parametrize(
    "produce",
    [
        None,
        "text",
        [1, 2, 3],
        *ASYNC_FUNCTIONS,
        *GENERATOR_FUNCTIONS,
    ],
    ids=shown,
)
def test_a_producer_that_is_not_a_blocking_function_is_refused_at_once(produce: Any) -> None:
    with pytest.raises(TypeError, match=r"produce\(emit, should_stop\)"):
        stream_from_thread(produce)


@pytest.mark.parametrize("made", [[1, 2], range(3), iter("abc"), (i for i in "abc"), None])
def test_an_iterable_in_place_of_a_function_that_makes_one_is_refused_at_once(made: Any) -> None:
    with pytest.raises(TypeError, match=r"stream_iterable\(lambda"):
        stream_iterable(made)


@pytest.mark.parametrize("make_iterable", ASYNC_FUNCTIONS, ids=shown)
def test_an_async_function_that_makes_an_iterable_is_refused_at_once(make_iterable: Any) -> None:
    with pytest.raises(TypeError, match="make_iterable must be a blocking function"):
        stream_iterable(make_iterable)


@pytest.mark.parametrize("callback", [*ASYNC_FUNCTIONS, *GENERATOR_FUNCTIONS, 1], ids=shown)
async def test_a_callback_that_is_not_a_plain_function_is_refused_at_once(callback: Any) -> None:
    for opener in (stream_from_thread, stream_iterable):
        with pytest.raises(TypeError, match="on_stop must be"):
            opener(lambda *_: [], on_stop=callback)

    def produce(emit: Any, stopping: Any) -> None:
        stopping.on_stop(callback)

    with pytest.raises(TypeError, match="callback must be"):
        async with stream_from_thread(produce) as stream:
            await rest(stream)


def test_a_class_whose_instances_are_async_callables_is_a_plain_function() -> None:
    """Calling it makes an instance, and calls nothing async."""
    kind: Any = AsyncCallable
    stream_from_thread(kind)
    stream_iterable(kind)


def a_decorated_function(*args: Any) -> Any:
    """What hides an async function, as a decorator of another library can."""
    return an_async_function(*args)


class Awaits:
    """An awaitable that is not a coroutine, such as a request of aiohttp."""

    def __await__(self) -> Iterator[None]:
        raise AssertionError
        yield


class AsyncItems:
    """An async iterator that is not a generator, such as a stream of httpx."""

    def __aiter__(self) -> AsyncItems:
        raise AssertionError

    async def __anext__(self) -> None:
        raise AssertionError


UNSTARTED: dict[str, Callable[..., Any]] = {
    "a coroutine": lambda *args: an_async_function(*args),
    "a coroutine of a decorated function": a_decorated_function,
    "an async generator": lambda *args: an_async_generator_function(*args),
    "an awaitable": lambda *args: Awaits(),
    "an async iterator": lambda *args: AsyncItems(),
    "a stream of ours": lambda *args: stream_from_thread(Scripted(1)),
}
# These can be iterated, but no one does: a producer has to do its work when it is called.
UNITERATED: dict[str, Callable[..., Any]] = {
    "a generator": lambda emit, stopping: (emit(each) for each in "abc"),
    "a generator function's": lambda *args: a_generator_function(*args),
    "map": lambda emit, stopping: map(emit, "abc"),
    "filter": lambda emit, stopping: filter(emit, "abc"),
}


@pytest.mark.parametrize("kind", [*UNSTARTED, *UNITERATED])
async def test_a_producer_that_returns_what_has_not_begun_is_an_error(kind: str) -> None:
    """It would otherwise be an empty stream. No warning of a coroutine that was never awaited."""
    produce = (UNSTARTED | UNITERATED)[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="must do its work when it is called"):
            async with stream_from_thread(produce) as stream:
                await rest(stream)
        gc.collect()
    assert stream.ending is Ending.FAILED


async def test_an_error_about_what_was_returned_names_the_function() -> None:
    with pytest.raises(TypeError, match=r"^a_decorated_function must .* returned a coroutine"):
        async with stream_from_thread(functools.partial(a_decorated_function)) as stream:
            await rest(stream)
    with pytest.raises(
        TypeError, match=r"^a_decorated_function must .* coroutine that it returned"
    ):
        async with stream_iterable(functools.partial(a_decorated_function, 1, 2)) as stream:
            await rest(stream)


@pytest.mark.parametrize("kind", UNSTARTED)
async def test_what_only_an_event_loop_can_iterate_is_an_error(kind: str) -> None:
    make = functools.partial(UNSTARTED[kind], 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"must return an iterable|must be opened first"):
            async with stream_iterable(make) as stream:
                await rest(stream)
        gc.collect()


class Task(Awaits):
    """As asyncio's: it goes on by itself, whether or not somebody awaits it."""

    def add_done_callback(self, callback: Any) -> None:
        raise AssertionError


async def test_a_task_that_goes_on_by_itself_can_be_returned() -> None:
    task = Task()

    def produce(emit: Emit, should_stop: ShouldStop) -> Task:
        return task

    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == []
    assert stream.result is task


@pytest.mark.parametrize("kind", [*UNSTARTED, *UNITERATED])
async def test_a_callback_that_returns_what_has_not_begun_is_logged(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    function = (UNSTARTED | UNITERATED)[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with stream_from_thread(Scripted(), on_stop=lambda: function(1, 2)) as stream:
            await stream.receive()
        gc.collect()
    (message,) = logged_by_us(caplog)
    assert "a callback must do its work when it is called" in message
    assert "<lambda>" in message


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_a_wrong_name_is_refused_at_once(opener: Any) -> None:
    for name in [1, b"name", ["name"]]:
        with pytest.raises(TypeError, match="name must be a str"):
            opener(lambda *_: [], name=name)


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
