"""Promise 3: a generation that is left before its turn makes no step."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from anyio import CancelScope, create_task_group, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import ENDLESS, PROMPT, stream_llama
from ..helpers.model_calls import Calls, Gate
from ..helpers.tiny_models import llama, steps_of, tokenizer
from ..helpers.ways_out import WAYS_THAT_CANCEL, BodyError, WayOut, each_of

pytestmark = pytest.mark.torch


async def test_a_stop_before_the_turn_makes_no_step(calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}) as steps:
        async with stream_llama(max_new_tokens=1) as first, stream_llama(**ENDLESS) as second:
            second.stop()
            assert await second.read() == ""
            assert second.finish_reason is FinishReason.STOPPED
            assert (second.timing.queued, second.timing.first_token) == (None, None)
            assert second.output is None
            gate.open()
            await first.read()
    assert steps.count == 1
    assert len(calls.entered) == 1


@each_of(*WAYS_THAT_CANCEL)
async def test_queued_work_never_runs(way: WayOut, calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}) as steps:
        async with stream_llama(max_new_tokens=2) as first:
            with CancelScope() as scope, contextlib.suppress(BodyError):
                async with stream_llama(**ENDLESS) as second:
                    await wait_all_tasks_blocked()
                    await way(second, scope)
            assert steps.count <= 1
            assert second.finish_reason is FinishReason.CANCELLED
            assert second.timing.queued is None
            gate.open()
            await first.read()
    assert steps.count == 2
    assert len(calls.entered) == 1


async def test_a_block_entered_in_a_cancelled_scope_makes_no_step() -> None:
    with steps_of(llama()) as steps, CancelScope() as scope:
        scope.cancel()
        async with stream_llama(**ENDLESS):
            await checkpoint()
    assert steps.count == 0


async def test_a_block_cancelled_while_its_prompt_is_encoded_makes_no_step() -> None:
    """Nor is it left before the tokenizer is."""
    gate = Gate()
    encoded = []

    class Slow:
        decode = tokenizer().decode

        def __call__(self, **kwargs: Any) -> Any:
            gate()
            encoded.append(True)
            return tokenizer()(**kwargs)

    async def cancel() -> None:
        await gate.reached()
        scope.cancel()
        await gate.open_when_blocked()

    with steps_of(llama()) as steps:
        async with create_task_group() as tasks:
            tasks.start_soon(cancel)
            with CancelScope() as scope:
                async with stream_text(llama(), Slow(), PROMPT, **ENDLESS):
                    pytest.fail("entered")
            assert encoded == [True]
    assert scope.cancelled_caught
    assert steps.count == 0
