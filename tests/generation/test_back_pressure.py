"""Promises 5 and 6: a bounded buffer holds the model, and nothing hangs for it."""

from __future__ import annotations

import math

import pytest
from anyio import fail_after
from anyio.lowlevel import checkpoint

from ..helpers.llama_streams import ENDLESS, says, stream_llama
from ..helpers.model_calls import Calls
from ..helpers.tiny_models import llama, steps_of

pytestmark = pytest.mark.torch


async def test_a_small_buffer_holds_the_model() -> None:
    ahead = []
    with steps_of(llama()) as steps:
        async with stream_llama(**says("abcdefghijklmnop"), max_buffer_size=2) as stream:
            async for _ in stream:
                # Two wait, one is being made.
                ahead.append(steps.count - len(stream.token_ids))
    assert max(ahead) <= 4
    assert stream.text == "abcdefghijklmnop"


async def test_nested_streams_on_one_model_do_not_deadlock() -> None:
    """The inner one waits for the outer's turn, which therefore no longer waits for its reader."""
    inner_texts = []
    with fail_after(30):
        async with stream_llama(**says("abcdef"), max_buffer_size=1) as outer:
            async for _ in outer:
                async with stream_llama(**says("xyz"), max_buffer_size=1) as inner:
                    inner_texts.append(await inner.read())
    assert outer.text == "abcdef"
    assert set(inner_texts) == {"xyz"}


@pytest.mark.parametrize("max_buffer_size", [1, math.inf])
async def test_a_consumer_that_never_reads_is_left_at_once(
    max_buffer_size: float, calls: Calls
) -> None:
    with fail_after(30):
        async with stream_llama(**ENDLESS, max_buffer_size=max_buffer_size):
            await checkpoint()
    assert calls.inside == 0
