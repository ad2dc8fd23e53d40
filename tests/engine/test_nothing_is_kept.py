"""Nothing of a stream is alive once it has ended and its consumer has dropped it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

import anystreamer.sync
from anystreamer import (
    open_engine,
    statistics,
    stream_batch,
    stream_from_thread,
    stream_iterable,
    stream_text,
)
from anystreamer.demo import load_demo
from anystreamer.testing import ScriptedModel

from ..helpers.inside import is_idle, state_of
from ..helpers.remote_engines import behind_a_server
from ..helpers.scripted import until

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("asyncio_complains_of_nothing")]

ENDLESS = ["word "] * 1000
PROMPT = "An increasing sequence: one, two,"


class Item:
    """What a producer emits, so that its life can be followed."""


@asynccontextmanager
async def no_engine(context: Callable[[], Any]) -> AsyncIterator[Callable[[], Any]]:
    yield context


@asynccontextmanager
async def scripted() -> AsyncIterator[Callable[[], Any]]:
    model = ScriptedModel(["one ", "two"])
    async with open_engine(model, model.tokenizer) as engine:
        yield partial(engine.stream_text, "hi")


@asynccontextmanager
async def remote() -> AsyncIterator[Callable[[], Any]]:
    model = ScriptedModel(["one ", "two"])
    async with open_engine(model, model.tokenizer) as local, behind_a_server(local) as engine:
        yield partial(engine.stream_text, "hi")


@asynccontextmanager
async def of_the_demo(batching: Any) -> AsyncIterator[Callable[[], Any]]:
    async with open_engine(*load_demo(), batching=batching) as engine:
        yield partial(engine.stream_text, PROMPT, max_new_tokens=5)


def plain(name: str) -> Callable[[], Any]:
    def context() -> Any:
        model = ScriptedModel(["one ", "two"])
        match name:
            case "stream_text":
                return stream_text(model, model.tokenizer, "hi")
            case "stream_batch":
                return stream_batch(*load_demo(), [PROMPT, PROMPT], max_new_tokens=5)
            case "stream_iterable":
                return stream_iterable(lambda: [Item(), Item()])
            case _:
                return stream_from_thread(lambda emit, should_stop: emit(Item()))

    return context


WAYS: dict[str, Callable[[], Any]] = {
    "an engine": scripted,
    "an engine of a model": partial(of_the_demo, "none"),
    "continuous batching": partial(of_the_demo, "continuous"),
    "a remote engine": remote,
    **{
        name: partial(no_engine, plain(name))
        for name in ("stream_text", "stream_batch", "stream_from_thread", "stream_iterable")
    },
}


async def consume(new_context: Callable[[], Any], way: str) -> list[weakref.ref[Any]]:
    """Use a stream, drop it, and return what is to be dead then."""
    context = new_context()
    async with context as stream:
        items = [await stream.receive()]
        if way == "read":
            items += [item async for item in stream]
        if way == "stop":
            stream.stop()
    kept = [context, stream, state_of(stream), *(each for each in items if isinstance(each, Item))]
    return [weakref.ref(each) for each in kept]


@pytest.mark.parametrize("way", ["read", "leave", "stop"])
@pytest.mark.parametrize("kind", WAYS)
async def test_nothing_of_a_stream_that_has_ended_is_kept(kind: str, way: str) -> None:
    async with WAYS[kind]() as new_context:
        for _ in range(2):
            references = await consume(new_context, way)
            await anyio.wait_all_tasks_blocked()  # the engine has nothing to do
            await until(lambda references=references: not alive(references))  # type: ignore[misc]


def alive(references: list[weakref.ref[Any]]) -> list[Any]:
    gc.collect()
    return [each for reference in references if (each := reference()) is not None]


async def test_nothing_of_a_stream_that_was_stopped_in_the_queue_is_kept() -> None:
    model = ScriptedModel(["one ", *ENDLESS])
    async with open_engine(model, model.tokenizer) as engine:
        async with engine.stream_text("hi") as first:
            await first.receive()

            async def wait_in_vain() -> weakref.ref[Any]:
                async with engine.stream_text("hi") as second:
                    second.stop()
                    assert await second.read() == ""
                return weakref.ref(state_of(second))

            reference = await wait_in_vain()
        await until(lambda: is_idle(engine))
        await until(lambda: not alive([reference]))


@pytest.mark.parametrize("batching", ["none", "continuous"])
def test_nothing_of_a_stream_without_a_loop_is_kept(batching: Any) -> None:
    with anystreamer.sync.open_engine(*load_demo(), batching=batching) as engine:

        def consume() -> list[weakref.ref[Any]]:
            with engine.stream_text(PROMPT, max_new_tokens=5) as stream:
                list(stream)
            return [weakref.ref(stream)]

        assert not alive(consume())


# -- what the statistics of the process keep


@pytest.mark.parametrize("kind", ["an engine of a model", "continuous batching"])
async def test_the_tokens_of_a_dropped_stream_stay_counted(kind: str) -> None:
    async with WAYS[kind]() as new_context:
        before = statistics()
        context = new_context()
        stream = await context.__aenter__()
        text = await stream.read()
        assert text
        tokens = len(stream.token_ids)
        read = statistics()
        assert read.computed_tokens == before.computed_tokens + tokens
        assert read.delivered_tokens == before.delivered_tokens + tokens
        reference = weakref.ref(state_of(stream))
        del stream, context
        await until(lambda: not alive([reference]))
        dropped = statistics()
        assert dropped.computed_tokens == read.computed_tokens
        assert dropped.delivered_tokens == read.delivered_tokens
        assert (dropped.waiting, dropped.running) == (before.waiting, before.running)


async def test_a_stream_that_is_left_is_counted_once() -> None:
    async with WAYS["an engine"]() as new_context:
        before = statistics()
        async with new_context() as stream:
            await stream.read()
        tokens = len(stream.token_ids)
        reference = weakref.ref(state_of(stream))
        del stream
        await until(lambda: not alive([reference]))
        assert statistics().computed_tokens == before.computed_tokens + tokens
