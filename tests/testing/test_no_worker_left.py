"""`no_worker_left`: what a test leaves running fails it, and nothing else does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope

from anystreamer import open_engine, stream_from_thread, sync
from anystreamer.testing import Gate, ScriptedModel, no_worker_left

from ..helpers.scripted import Scripted, until
from ..helpers.ways_out import BodyError, WayOut, each_way_out


@each_way_out
async def test_a_stream_that_was_left_in_any_way_left_nothing(way: WayOut) -> None:
    with no_worker_left(timeout=0):
        with CancelScope() as scope, contextlib.suppress(BodyError):
            async with stream_from_thread(Scripted(50)) as stream:
                await stream.receive()
                await way(stream, scope)


async def test_streams_that_were_open_before_are_not_looked_at() -> None:
    producer = Scripted(allowed=1)
    async with stream_from_thread(producer) as stream:
        await stream.receive()
        with no_worker_left(timeout=0):
            async with stream_from_thread(Scripted(3)) as other:
                await other.receive()
        assert producer.running


async def test_a_block_that_was_not_left_fails_and_is_stopped() -> None:
    producer = Scripted(allowed=1)
    block = stream_from_thread(producer)
    with pytest.raises(AssertionError, match=r"Scripted #\d+ was left running") as caught:
        with no_worker_left(timeout=0):
            stream = await block.__aenter__()
            await stream.receive()
    assert "is in:" in str(caught.value)
    assert "in __call__" in str(caught.value)
    await until(lambda: not producer.running)
    await block.__aexit__(None, None, None)


async def test_a_stream_in_the_queue_fails_too() -> None:
    turns = anyio.CapacityLimiter(1)
    first, second = Scripted(allowed=0), Scripted()
    async with stream_from_thread(first, limiter=turns):
        await until(lambda: first.running)
        block = stream_from_thread(second, limiter=turns)
        with pytest.raises(AssertionError, match="was left waiting for its turn"):
            with no_worker_left(timeout=0):
                await block.__aenter__()
        await block.__aexit__(None, None, None)
    assert not second.entered


async def test_a_generator_that_was_neither_finished_nor_closed_fails() -> None:
    gate = Gate()
    model = ScriptedModel(["a", gate, "b"])
    async with open_engine(model, model.tokenizer) as engine:

        async def answer() -> AsyncGenerator[str]:
            async with engine.stream_text("hi") as stream:
                async for text in stream:
                    yield text

        generator = answer()
        with pytest.raises(AssertionError, match="was left running"):
            with no_worker_left(timeout=0):
                assert await anext(generator) == "a"
                await gate.reached()
        gate.open()
        await generator.aclose()
        with no_worker_left(timeout=0):
            other = answer()
            assert "ab".startswith(await anext(other))
            await other.aclose()


def test_a_stream_of_a_thread_fails_too() -> None:
    gate = Gate()
    model = ScriptedModel(["a", gate, "b"])
    stream = sync.stream_text(model, model.tokenizer, "hi")
    with pytest.raises(AssertionError, match="was left running"), no_worker_left(timeout=0):
        stream.__enter__()
        assert next(iter(stream)) == "a"
        gate.wait_until_reached()
    gate.open()
    stream.close()
    with no_worker_left(timeout=0):
        with sync.stream_text(model, model.tokenizer, "hi") as stream:
            assert "ab".startswith(next(iter(stream)))


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    producer = Scripted(allowed=1)
    block = stream_from_thread(producer)
    with pytest.raises(BodyError):
        with no_worker_left():
            await block.__aenter__()
            raise BodyError
    await until(lambda: not producer.running)
    await block.__aexit__(None, None, None)


def test_a_worker_that_is_about_to_end_is_waited_for() -> None:
    """Of a stream that was forgotten, a thread ends by itself: at once, and not at a known time."""
    gate = Gate()
    model = ScriptedModel(["a", gate, *"b" * 1000])
    with no_worker_left(timeout=30):
        stream: Any = sync.stream_text(model, model.tokenizer, "hi")
        stream.__enter__()
        gate.wait_until_reached()
        del stream
        gate.open()
    assert not model.is_generating


TESTS = """
    import anyio
    from anystreamer import stream_from_thread, sync
    from anystreamer.testing import Gate, ScriptedModel

    gate, kept = Gate(), []

    def test_leaves(no_worker_left):
        model = ScriptedModel([gate, "a"])
        kept.append(sync.stream_text(model, model.tokenizer, "hi"))
        kept[0].__enter__()
        gate.wait_until_reached()

    def test_leaves_nothing(no_worker_left):
        gate.open()

        async def main():
            async with stream_from_thread(lambda emit, should_stop: emit(1)) as stream:
                assert await stream.receive() == 1
        anyio.run(main)

    def test_fails_by_itself(no_worker_left):
        raise OSError
"""


@pytest.mark.slow
def test_the_fixture_fails_a_test_that_leaves_a_worker(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["anystreamer.pytest_plugin"]')
    (tmp_path / "test_it.py").write_text(textwrap.dedent(TESTS))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "was left running" in ran.stdout, ran.stdout
    assert "in generate" in ran.stdout, "where it is"
    assert "1 failed, 2 passed, 1 error" in ran.stdout.rstrip().splitlines()[-1], ran.stdout
