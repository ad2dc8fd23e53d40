"""A stream in another event loop, or in a thread without one: an error says so, and nothing hangs.

The other loop can run in another thread, or in the same one while the stream's own is not running.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from anyio import to_thread

from anystreamer import (
    AsyncTextIteratorStreamer,
    open_engine,
    stream_batch,
    stream_from_thread,
    stream_text,
)
from anystreamer._bridge import DetachedTasks, LoopGone, UngroupedTaskGroup
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, Scripted, each_native_loop, until

ELSEWHERE = "belongs to another event loop"

USES: dict[str, Callable[[Any, Any], Awaitable[object]]] = {
    "receive": lambda stream, context: stream.receive(),
    "iterate": lambda stream, context: anext(aiter(stream)),
    "aclose": lambda stream, context: stream.aclose(),
    "leave": lambda stream, context: context.__aexit__(None, None, None),
}
each_use = pytest.mark.parametrize("use", USES)
OTHER_LOOPS = pytest.mark.parametrize("other", ["asyncio", "trio"])


def use_in(other: str, use: str, stream: Any, context: Any) -> BaseException | None:
    """Use a stream in a new event loop of this thread. Returns what that raises."""

    async def main() -> BaseException | None:
        with anyio.fail_after(PATIENCE):
            try:
                await USES[use](stream, context)
            except RuntimeError as exc:
                return exc
        return None

    if other == "trio":
        pytest.importorskip("trio")
    return anyio.run(main, backend=other)


@each_use
@OTHER_LOOPS
@pytest.mark.parametrize("items", [0, 1])
async def test_a_stream_in_the_loop_of_another_thread(use: str, other: str, items: int) -> None:
    producer = Scripted(allowed=items)
    context = stream_from_thread(producer)
    async with context as stream:
        await until(lambda: producer.steps == items)
        error = await to_thread.run_sync(use_in, other, use, stream, context)
        assert ELSEWHERE in str(error)
        if use != "leave":
            producer.allow(1)
            assert await stream.receive() == 0
    assert producer.has_left


@each_use
@OTHER_LOOPS
async def test_a_stream_of_an_engine_in_the_loop_of_another_thread(use: str, other: str) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with open_engine(model, model.tokenizer) as engine:
        context = engine.stream_text("hi")
        async with context as stream:
            error = await to_thread.run_sync(use_in, other, use, stream, context)
            assert ELSEWHERE in str(error)
            gate.open()
            assert await stream.read() == ("" if use == "leave" else "a")


@OTHER_LOOPS
async def test_a_batch_in_the_loop_of_another_thread(other: str) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    context = stream_batch(model, model.tokenizer, ["hi"])
    async with context as stream:
        error = await to_thread.run_sync(use_in, other, "receive", stream, context)
        assert ELSEWHERE in str(error)
        gate.open()
        assert await stream.read() == ["a"]


@OTHER_LOOPS
async def test_an_engine_in_the_loop_of_another_thread(other: str) -> None:
    model = ScriptedModel(["a"])
    context = open_engine(model, model.tokenizer)
    async with context as engine:
        error = await to_thread.run_sync(use_in, other, "leave", None, context)
        assert "this engine belongs to another event loop" in str(error)
        async with engine.stream_text("hi") as stream:
            assert await stream.read() == "a"


@OTHER_LOOPS
@pytest.mark.parametrize("owner", ["stream", "engine"])
async def test_the_bodys_error_comes_out_of_a_block_that_is_left_in_another_loop(
    other: str, owner: str
) -> None:
    model = ScriptedModel(["a"])
    error = LookupError("of the body")
    context: Any = stream_text(model, model.tokenizer, "hi")
    if owner == "engine":
        context = open_engine(model, model.tokenizer)

    async def elsewhere() -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(context.__aexit__)
            raise error

    def run() -> BaseException:
        with pytest.raises(LookupError) as caught:
            anyio.run(elsewhere, backend=other)
        return caught.value

    async with context:
        assert await to_thread.run_sync(run) is error


@OTHER_LOOPS
async def test_the_drop_in_in_the_loop_of_another_thread(other: str) -> None:
    streamer = AsyncTextIteratorStreamer(ScriptedModel(["a"]).tokenizer)
    error = await to_thread.run_sync(use_in, other, "iterate", streamer, None)
    assert ELSEWHERE in str(error)


async def test_a_thread_without_a_loop() -> None:
    producer = Scripted(allowed=1)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.steps == 1)
        with pytest.raises(RuntimeError, match=ELSEWHERE):
            await to_thread.run_sync(lambda: stream.receive().send(None))
        assert await stream.receive() == 0


@each_use
@each_native_loop
def test_a_stream_in_another_loop_of_its_thread(native: Any, use: str) -> None:
    """Two loops take turns in one thread, as in a notebook or in tests."""
    stream: Any = None
    model = ScriptedModel(["a"] * 10_000, delay=0.001)
    context = stream_text(model, model.tokenizer, "hi")
    with native.runner() as first, native.runner() as second:

        async def elsewhere() -> str:
            with pytest.raises(RuntimeError, match=ELSEWHERE) as caught:
                await asyncio.wait_for(asyncio.ensure_future(USES[use](stream, context)), PATIENCE)
            return str(caught.value)

        async def main() -> None:
            nonlocal stream
            stream = await context.__aenter__()
            yielded.set()
            await asyncio.get_running_loop().run_in_executor(None, left.wait)
            await context.__aexit__(None, None, None)

        yielded, left = threading.Event(), threading.Event()
        loop = first.get_loop()
        task = loop.create_task(main())
        while not yielded.is_set():
            loop.run_until_complete(asyncio.sleep(0.001))
        assert ELSEWHERE in second.run(elsewhere())
        left.set()
        loop.run_until_complete(task)
    assert not model.is_generating


@OTHER_LOOPS
@pytest.mark.parametrize("ended", ["group", "loop"])
def test_a_call_into_what_has_ended_is_refused_without_a_word(other: str, ended: str) -> None:
    """Python would warn of a coroutine that was never awaited."""
    asked: list[BaseException | None] = []

    async def nothing() -> None:
        raise AssertionError

    def ask(tasks: DetachedTasks[Any]) -> None:
        with pytest.raises(LoopGone) as caught:
            tasks.call_from_thread(nothing)
        asked.append(caught.value.__cause__)

    async def main() -> DetachedTasks[Any]:
        group = UngroupedTaskGroup()
        await group.open()
        tasks: DetachedTasks[Any] = DetachedTasks(group)
        await group.close(None)  # as a loop that is killed ends it: nobody has called `end_calls`
        if ended == "group":
            await to_thread.run_sync(ask, tasks)
        return tasks

    tasks = anyio.run(main, backend=other)
    if ended == "loop":
        ask(tasks)
    gc.collect()
    assert isinstance(asked[0], RuntimeError)
