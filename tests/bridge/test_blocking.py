"""Nothing of ours blocks the event loop: blockbuster watches. It knows asyncio and uvloop only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import anystreamer
from anystreamer import AsyncTextIteratorStreamer, stream_batch, stream_from_thread, stream_text
from anystreamer.testing import Gate, ScriptedModel

from ..conftest import LOOPS
from ..helpers.scripted import Scripted, rest

blockbuster = pytest.importorskip("blockbuster")

ON_ASYNCIO = [loop for loop in LOOPS if loop.id != "trio"]


@pytest.fixture(scope="module", params=ON_ASYNCIO)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def watched() -> Any:
    watch = blockbuster.BlockBuster()
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()


async def test_it_would_be_seen(watched: None) -> None:
    with pytest.raises(blockbuster.BlockingError):
        time.sleep(0.001)


@pytest.mark.parametrize(
    "kwargs", [{}, {"max_buffer_size": 1}, {"timeout": 60.0}, {"stop": "no"}], ids=str
)
async def test_a_stream_that_is_read(watched: None, kwargs: dict[str, Any]) -> None:
    model = ScriptedModel(["a"] * 50, delay=0.0002)
    async with stream_text(model, model.tokenizer, "hi", **kwargs) as stream:
        assert await stream.read() == "a" * 50
        anystreamer.statistics()


async def test_a_batch(watched: None) -> None:
    model = ScriptedModel(["a"] * 20)
    async with stream_batch(model, model.tokenizer, ["hi"]) as stream:
        assert await stream.read() == ["a" * 20]


@pytest.mark.parametrize(
    "leave", [lambda stream: None, lambda stream: stream.stop(), lambda stream: stream.aclose()]
)
async def test_a_stream_that_is_left(watched: None, leave: Callable[[Any], Any]) -> None:
    model = ScriptedModel(["a"] * 1000, delay=0.0002)
    async with stream_text(model, model.tokenizer, "hi", max_buffer_size=1) as stream:
        await stream.receive()
        if (waiting := leave(stream)) is not None:
            await waiting


async def test_a_stream_that_waits_for_its_turn(watched: None) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with stream_text(model, model.tokenizer, "hi") as first:
        async with stream_text(model, model.tokenizer, "hi"):
            pass
        gate.open()
        assert await first.read() == "a"


async def test_a_stream_that_fails(watched: None) -> None:
    model = ScriptedModel(["a", OSError("no memory")])
    with pytest.raises(OSError, match="no memory"):
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()


async def test_a_bare_producer(watched: None) -> None:
    async with stream_from_thread(Scripted(20)) as stream:
        assert await rest(stream) == list(range(20))


async def test_the_drop_in(watched: None) -> None:
    model = ScriptedModel(["a"] * 20)

    def generate(emit: Callable[[str], None], should_stop: Callable[[], bool]) -> None:
        model.generate(input_ids=[[1]], streamer=streamer)

    streamer = AsyncTextIteratorStreamer(model.tokenizer, skip_prompt=True)
    async with stream_from_thread(generate):
        assert "".join([text async for text in streamer]) == "a" * 20 + "<eos>"
