"""What a stream shows of itself, in a notebook or a debugger: where it is, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from anyio import CancelScope

from anystreamer import Engine, open_engine, stream_from_thread, stream_text, sync
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import until


def endless(emit: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
    while not should_stop():
        emit(0)


def failing(emit: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
    emit(0)
    raise OSError("no disk")


async def test_items_that_wait_are_counted() -> None:
    async with stream_from_thread(endless, max_buffer_size=3) as stream:
        await stream.wait_until_held()
        assert repr(stream) == "<anystreamer.ThreadStream running, 3 waiting>"
        await stream.receive()
        await stream.wait_until_held()
        stream.stop()
        await until(lambda: "ended" in repr(stream))
        assert repr(stream) == "<anystreamer.ThreadStream ended, 3 waiting>"
        assert len([item async for item in stream]) == 3
        assert repr(stream) == "<anystreamer.ThreadStream ended, stopped>"
    assert repr(stream) == "<anystreamer.ThreadStream closed, stopped>"


async def test_it_shows_how_a_producer_ended() -> None:
    async with stream_from_thread(endless, max_buffer_size=3) as stream:
        await stream.receive()
    assert repr(stream) == "<anystreamer.ThreadStream closed, cancelled>"
    with pytest.raises(OSError, match="no disk"):
        async with stream_from_thread(failing) as stream:
            async for _ in stream:
                pass
    assert repr(stream) == "<anystreamer.ThreadStream closed, failed>"


async def test_a_text_shows_its_tokens_and_its_finish_reason() -> None:
    gate = Gate()
    model = ScriptedModel(["one ", "two ", gate, "three "])
    opening = stream_text(model, model.tokenizer, "Count")
    assert repr(opening) == (
        "<anystreamer.stream_text() not opened: 'async with stream_text(...) as stream:'>"
    )
    async with opening as stream:
        await gate.reached()
        assert repr(stream) == "<anystreamer.TextStream running, 2 waiting>"
        await stream.receive()
        assert repr(stream) == "<anystreamer.TextStream running, 2 tokens>"
        assert repr(opening) == f"<anystreamer.stream_text() {stream!r}>"
        gate.open()
        await stream.read()
        count = len(stream.token_ids)
        assert repr(stream) == f"<anystreamer.TextStream ended, eos, {count} tokens>"
    assert repr(stream) == f"<anystreamer.TextStream closed, eos, {count} tokens>"


async def test_a_cancelled_text_says_so() -> None:
    model = ScriptedModel(["one "] * 1_000)
    with CancelScope() as scope:
        async with stream_text(model, model.tokenizer, "Count", max_buffer_size=1) as stream:
            await stream.receive()
            scope.cancel()
    assert repr(stream).startswith("<anystreamer.TextStream closed, cancelled, ")


async def test_a_request_in_a_queue_shows_how_many_are_before_it() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "one "])

    def ask(engine: Engine) -> Any:
        return engine.stream_text("Count")

    async with open_engine(model, model.tokenizer) as engine:
        async with ask(engine), ask(engine) as second, ask(engine) as third:
            await gate.reached()
            assert repr(second) == "<anystreamer.TextStream waiting for its turn>"
            assert repr(third) == "<anystreamer.TextStream waiting for its turn, 1 before it>"
            gate.open()


@pytest.mark.torch
def test_a_batch_counts_how_its_rows_ended() -> None:
    from anystreamer.demo import load_demo

    prompts = ["An increasing sequence: one,"] * 3
    opening = sync.stream_batch(
        *load_demo(), prompts, stop=[" four"], max_new_tokens=100, max_buffer_size=1
    )
    assert repr(opening) == (
        "<anystreamer.sync.SyncBatchStream not opened: 'with stream_batch(...) as stream:'>"
    )
    with opening as stream:
        stream.stop(1)  # the model is held in its first step
        stream.read()
        assert stream.finish_reason == ["stop_string", "stopped", "stop_string"]
        tokens = sum(map(len, stream.token_ids))
        assert repr(stream) == (
            f"<anystreamer.sync.SyncBatchStream ended, 2 stop_string, 1 stopped, {tokens} tokens>"
        )


def test_without_an_event_loop_it_shows_the_same() -> None:
    with sync.stream_iterable(lambda: range(3)) as stream:
        assert list(stream) == [0, 1, 2]
        assert repr(stream) == "<anystreamer.sync.SyncThreadStream ended>"
    assert repr(stream) == "<anystreamer.sync.SyncThreadStream closed>"
