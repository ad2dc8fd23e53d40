"""Promises 1 and 2: a stream that is left stops its model within a step, and joins it."""

from __future__ import annotations

import contextlib
import threading

import pytest
from anyio import CancelScope, create_task_group, current_time, from_thread
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason

from ..helpers.llama_streams import ENDLESS, stream_llama
from ..helpers.model_calls import Calls, Gate
from ..helpers.tiny_models import Say, llama, steps_of
from ..helpers.ways_out import WAYS_THAT_CANCEL, BodyError, WayOut, each_of

pytestmark = pytest.mark.torch


@each_of(*WAYS_THAT_CANCEL)
async def test_leaving_stops_the_model_within_a_step(way: WayOut, calls: Calls) -> None:
    """By any way out. The model is in its third step then; a fourth can have begun."""
    gate = Gate()
    async with create_task_group() as tasks:
        with steps_of(llama(), {3: gate}) as steps:
            with CancelScope() as scope, contextlib.suppress(BodyError):
                async with stream_llama(**ENDLESS, logits_processor=[Say("ab")]) as stream:
                    async for _ in stream:
                        if len(stream.token_ids) == 2:
                            break
                    tasks.start_soon(gate.open_when_blocked)
                    await way(stream, scope)
            assert calls.inside == 0
            assert steps.count <= 4
    assert stream.text == "ab"
    assert stream.finish_reason is FinishReason.CANCELLED


async def test_stop_ends_after_the_current_step_and_keeps_everything(calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {3: gate}) as steps:
        async with stream_llama(**ENDLESS, logits_processor=[Say("abcd")]) as stream:
            while len(stream.token_ids) < 2:
                await stream.receive()
            stream.stop()
            stream.stop()
            gate.open()
            await stream.read()
    assert calls.inside == 0
    assert steps.count <= 4
    assert len(stream.token_ids) == steps.count
    assert "abcd".startswith(stream.text)
    assert stream.finish_reason is FinishReason.STOPPED


async def test_a_cancelled_scope_is_seen_even_while_the_loop_is_blocked() -> None:
    gate = Gate()
    done = threading.Event()
    with steps_of(llama(), {2: gate, 8: done.set}) as steps:
        with CancelScope() as scope:
            async with stream_llama(**ENDLESS, logits_processor=[Say("ab")]) as stream:
                await stream.receive()
                scope.cancel()
                gate.open()
                done.wait(0.1)  # the loop does nothing, and an eighth step is waited for
    assert steps.count <= 3


async def test_a_shielded_consumer_does_not_keep_the_model_going() -> None:
    with steps_of(llama(), {3: lambda: from_thread.run_sync(scope.cancel)}) as steps:
        with CancelScope() as scope:
            async with stream_llama(**ENDLESS) as stream:
                with CancelScope(shield=True):
                    await stream.read()
                assert len(stream.token_ids) <= 4
    assert steps.count <= 4


async def test_a_deadline_stops_the_model() -> None:
    """While the consumer waits for a step that takes longer."""
    gate = Gate()

    async def open_when_over() -> None:
        while not scope.cancel_called:
            await checkpoint()
        gate.open()

    with steps_of(llama(), {3: gate}) as steps:
        async with create_task_group() as tasks:
            with CancelScope() as scope:
                async with stream_llama(**ENDLESS) as stream:
                    await gate.reached()
                    scope.deadline = current_time() + 0.01
                    tasks.start_soon(open_when_over)
                    await stream.read()
    assert scope.cancelled_caught
    assert steps.count <= 4
    assert stream.finish_reason is FinishReason.CANCELLED


async def test_the_block_ends_after_generate_has_returned(calls: Calls) -> None:
    """Also when the consumer leaves at once."""
    for _ in range(20):
        async with stream_llama(**ENDLESS):
            pass
        assert calls.inside == 0
