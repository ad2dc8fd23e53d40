"""What is read, opened or iterated wrongly says what to write, and where the text is."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from anystreamer import (
    open_engine,
    open_worker,
    stream_batch,
    stream_from_thread,
    stream_iterable,
    stream_text,
    sync,
)
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import rest


def text_stream() -> Any:
    model = ScriptedModel(["a", "b"])
    return stream_text(model, model.tokenizer, "hi")


def item_stream() -> Any:
    return stream_iterable(lambda: [0, 1])


async def iterate(stream: Any) -> None:
    async for _ in stream:
        pass


async def read(stream: Any) -> None:
    await stream.read()


@pytest.mark.parametrize("again", [iterate, rest])
@pytest.mark.parametrize("first", [iterate, read])
async def test_a_second_loop_over_text_is_an_error_that_says_where_the_text_is(
    first: Callable[[Any], Awaitable[Any]], again: Callable[[Any], Awaitable[Any]]
) -> None:
    async with text_stream() as stream:
        await first(stream)
        with pytest.raises(RuntimeError, match=r"read to its end before; stream\.text has"):
            await again(stream)
        assert await stream.read() == ""
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    with pytest.raises(RuntimeError, match="read to its end before"):
        await again(stream)
    assert stream.text == "ab"


async def test_a_second_loop_over_items_is_an_error() -> None:
    async with item_stream() as stream:
        await iterate(stream)
        with pytest.raises(RuntimeError, match=r"read to its end before$"):
            await iterate(stream)


async def test_a_loop_goes_on_where_another_was_left_and_after_a_stop() -> None:
    async with item_stream() as stream:
        async for item in stream:
            assert item == 0
            break
        assert await rest(stream) == [1]
    async with item_stream() as stream:
        await iterate(stream)
        stream.stop()  # whoever stops it takes what is left, and cannot know that nothing is
        assert await rest(stream) == []


async def test_what_its_block_has_left_says_so() -> None:
    async with text_stream() as stream:
        await stream.receive()
    for use in (iterate, read, lambda stream: stream.receive()):
        with pytest.raises(anyio.ClosedResourceError, match=r"its block ends; stream\.text has"):
            await use(stream)
    async with item_stream() as items:
        await items.aclose()
        with pytest.raises(anyio.ClosedResourceError, match=r"before its block ends$"):
            await items.receive()


def sync_text_stream() -> sync.SyncTextStream:
    model = ScriptedModel(["a", "b"])
    return sync.stream_text(model, model.tokenizer, "hi")


def test_synchronous_loops_do_the_same() -> None:
    with sync_text_stream() as stream:
        assert "".join(stream) == "ab"
        with pytest.raises(RuntimeError, match=r"read to its end before; stream\.text has"):
            list(stream)
        stream.stop()
        assert list(stream) == []
    with sync_text_stream() as stream:
        next(stream)
    with pytest.raises(RuntimeError, match="before its block ends"):
        list(stream)
    with sync.stream_iterable(lambda: [0, 1]) as items:
        assert next(items) == 0
        assert list(items) == [1]
        with pytest.raises(RuntimeError, match=r"read to its end before$"):
            list(items)


async def awaited(stream: Any) -> None:
    await stream


async def entered(stream: Any) -> None:
    async with stream:
        pass


def entered_without_loop(stream: Any) -> None:
    with stream:
        pass


async def test_a_stream_that_is_used_as_something_else() -> None:
    async with text_stream() as stream:
        hint = r"'async for item in stream:' or 'await stream\.read\(\)'.*anystreamer\.sync"
        with pytest.raises(TypeError, match=hint):
            await awaited(stream)
        for use in (list, next, entered_without_loop):
            with pytest.raises(TypeError, match=hint):
                use(stream)


@pytest.mark.parametrize("opener", [text_stream, item_stream])
async def test_a_block_that_was_not_opened(opener: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"must be opened first: 'async with "):
        await iterate(opener())
    with pytest.raises(TypeError, match=r"must be opened first: 'async with "):
        await awaited(opener())
    for use in (list, entered_without_loop):
        with pytest.raises(TypeError, match=r"Without an event loop use anystreamer\.sync: 'with "):
            use(opener())
    with pytest.raises(AttributeError, match=r"no text yet: .* must be opened first: 'async with "):
        opener().text  # noqa: B018
    assert not hasattr(opener(), "_repr_html_")


async def test_an_engine_and_a_worker_that_were_not_opened() -> None:
    model = ScriptedModel(["a"])
    engine: Any = open_engine(model, model.tokenizer)
    worker: Any = open_worker()
    with pytest.raises(AttributeError, match=r"open_engine\(\) must be opened.*as engine:"):
        engine.stream_text("hi")
    with pytest.raises(AttributeError, match=r"open_worker\(\) must be opened.*'worker\.run'"):
        worker.run(int)
    async with engine as opened, opened.stream_text("hi") as stream:
        assert await stream.read() == "a"


async def test_a_synchronous_stream_in_an_async_function() -> None:
    for use in (awaited, iterate, entered):
        with pytest.raises(TypeError, match=r"Async functions use the one of anystreamer"):
            await use(sync_text_stream())


# -- blocks in async generators


def emit_one(emit: Any, _: Any) -> None:
    emit(1)


@pytest.mark.parametrize(
    "opener",
    [
        text_stream,
        item_stream,
        lambda: stream_from_thread(emit_one),
        lambda: stream_batch(model := ScriptedModel(["a"]), model.tokenizer, ["hi"]),
    ],
)
async def test_a_block_in_an_async_generator_names_what_can_stay_open(
    opener: Callable[[], Any],
) -> None:
    async def items() -> AsyncIterator[Any]:
        async with opener() as stream:
            async for item in stream:
                yield item

    async def entered_in_a_stack() -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            yield await stack.enter_async_context(opener())

    for generator in (items, entered_in_a_stack):
        with pytest.warns(RuntimeWarning, match=r"open_engine\(\) and open_worker\(\)") as warned:
            await iterate(generator())
        (warning,) = warned
        if generator is items:
            assert warning.filename == __file__


async def test_other_blocks_do_not_warn() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        async with text_stream() as stream:
            yield stream

    async def of_an_engine() -> AsyncIterator[str]:
        model = ScriptedModel(["a", "b"])
        async with open_engine(model, model.tokenizer) as engine, engine.stream_text("hi") as s:
            async for text in s:
                yield text

    async def around_a_function() -> AsyncIterator[str]:
        async def whole() -> str:
            async with text_stream() as stream:
                text: str = await stream.read()
                return text

        yield await whole()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with opened() as stream:
            await stream.read()
        async with AsyncExitStack() as stack:
            await (await stack.enter_async_context(opened())).read()
        await iterate(of_an_engine())
        await iterate(around_a_function())


@pytest.fixture
async def fixture_stream() -> AsyncIterator[Any]:
    async with text_stream() as stream:
        yield stream


async def test_a_fixture_does_not_warn(fixture_stream: Any) -> None:
    assert await fixture_stream.read() == "ab"
