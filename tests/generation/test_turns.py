"""Promise 9: one model runs one generate() at a time, first come, first served."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import threading
import weakref
from time import perf_counter
from typing import Any

import pytest
import torch
from anyio import (
    CancelScope,
    CapacityLimiter,
    create_task_group,
    fail_after,
    sleep,
    wait_all_tasks_blocked,
)
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import (
    ENDLESS,
    PROMPT,
    collect,
    raiser,
    reason_of,
    says,
    stream_llama,
)
from ..helpers.model_calls import Calls, Gate
from ..helpers.tiny_models import (
    Adapter,
    llama,
    new_llama,
    new_tokenizer,
    other_llama,
    steps_of,
    tokenizer,
)
from ..helpers.ways_out import (
    BodyError,
    WayOut,
    cancelled_from_outside,
    closed,
    leaving,
    raising,
    reaching_the_end,
    stopped,
)

pytestmark = pytest.mark.torch


async def test_two_streams_on_one_model_never_overlap(calls: Calls) -> None:
    async def one() -> None:
        await collect(stream_llama(max_new_tokens=10))

    async with create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)
    assert calls.most == 1
    assert len(calls.entered) == 4


async def test_a_crowd_on_one_model(calls: Calls) -> None:
    """Each leaves by another way at another time, and has its own text until then."""
    chance = random.Random(0)
    ways = [reaching_the_end, leaving, stopped, closed, cancelled_from_outside, raising]
    ends = []

    async def one(number: int, way: WayOut, when: int) -> None:
        text = f"{number}: Größe, 東京; " * 2
        arguments = {"stop": "; " * 2, "max_buffer_size": chance.choice([1, 3, math.inf])}
        with CancelScope() as scope, contextlib.suppress(BodyError):
            async with stream_llama(**says(text), **arguments) as stream:
                async for _ in stream:
                    if len(stream.text) >= when and way is not reaching_the_end:
                        break
                await way(stream, scope)
        # One that is stopped inside a character shows that there was one.
        assert text.startswith(stream.text.removesuffix("\ufffd"))
        assert (stream.text == text) or way is not reaching_the_end
        assert len(stream.token_ids) == stream.usage.completion_tokens
        assert stream.usage.completion_tokens <= stream.usage.computed_tokens
        ends.append(stream.finish_reason)

    async with create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(one, number, ways[number % 6], chance.randrange(30))
    assert len(ends) == 12
    assert None not in ends
    assert calls.most == 1


async def test_first_come_first_served(calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}):
        async with contextlib.AsyncExitStack() as stack:
            streams = []
            for number in range(4):
                context = stream_llama(call=number, max_new_tokens=1)
                streams.append(await stack.enter_async_context(context))
                await wait_all_tasks_blocked()
            gate.open()
            for stream in reversed(streams):
                await stream.read()
    assert calls.entered == [0, 1, 2, 3]


async def test_timing_has_the_time_in_the_queue() -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}):
        async with (
            stream_llama(max_new_tokens=1) as first,
            stream_llama(max_new_tokens=1) as second,
        ):
            begin = perf_counter()  # it is in the queue, for as long as the first one is held
            await sleep(0.01)
            held = perf_counter() - begin
            gate.open()
            await second.read()
            await first.read()
    assert second.timing.queued >= held
    assert second.timing.queued <= second.timing.first_token <= second.timing.total


async def test_two_models_do_overlap() -> None:
    """Each waits in its first step until the other is there."""
    both = threading.Barrier(2, timeout=30)
    with steps_of(llama(), {1: both.wait}), steps_of(other_llama(), {1: both.wait}):
        async with stream_llama(max_new_tokens=1) as one:
            async with stream_text(other_llama(), tokenizer(), PROMPT, max_new_tokens=1) as other:
                assert len((await one.read(), await other.read())) == 2
    assert one.finish_reason is other.finish_reason is FinishReason.LENGTH


async def test_a_limiter_of_the_callers_gives_the_turns() -> None:
    """Two tokens, two generations at a time, and the third waits."""
    limiter = CapacityLimiter(2)
    both = threading.Barrier(2, timeout=30)
    steps = {1: both.wait, 2: both.wait}
    with steps_of(llama(), steps):
        async with contextlib.AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(stream_llama(max_new_tokens=1, limiter=limiter))
                for _ in range(3)
            ]
            for stream in streams:
                await stream.read()
    assert limiter.borrowed_tokens == 0
    assert {stream.finish_reason for stream in streams} == {FinishReason.LENGTH}


async def test_a_limiter_of_the_callers_is_shared_with_other_work() -> None:
    limiter = CapacityLimiter(1)
    async with limiter:
        async with stream_llama(max_new_tokens=1, limiter=limiter) as stream:
            await wait_all_tasks_blocked()
            assert "waiting for its turn" in repr(stream)
            assert limiter.statistics().tasks_waiting == 1
    assert stream.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize("wrap", ["compile", "adapter", "compiled adapter"])
async def test_wrappers_of_a_model_share_its_turns(wrap: str, calls: Calls) -> None:
    """The weights are the same, and so is the device."""
    model = llama() if wrap == "compile" else Adapter(llama())
    if "compile" in wrap:
        model = torch.compile(model, backend="eager")
    texts = []

    async def one(model: Any) -> None:
        chunks, _ = await collect(stream_text(model, tokenizer(), PROMPT, max_new_tokens=10))
        texts.append("".join(chunks))

    async with create_task_group() as tasks:
        for each in (model, llama(), model):
            tasks.start_soon(one, each)
    assert calls.most == 1
    assert len(calls.entered) == 3
    assert len(set(texts)) == 1


async def test_the_turn_is_free_again_after_every_end() -> None:
    with steps_of(llama(), {2: raiser(RuntimeError("broken"))}):
        with pytest.raises(RuntimeError, match="broken"):
            await collect(stream_llama(**ENDLESS))
    async with stream_llama(**ENDLESS):
        pass
    with CancelScope() as scope:
        async with stream_llama(**ENDLESS):
            scope.cancel()
            await checkpoint()
    with fail_after(30):
        assert await reason_of(stream_llama(max_new_tokens=1)) is FinishReason.LENGTH


async def test_streams_do_not_keep_a_model_alive() -> None:
    """Nor does an idle worker thread; the stream itself can be kept."""

    async def use() -> tuple[Any, Any, Any]:
        model, own_tokenizer = new_llama(), new_tokenizer()
        _, stream = await collect(stream_text(model, own_tokenizer, PROMPT, max_new_tokens=2))
        return weakref.ref(model), weakref.ref(own_tokenizer), stream

    model, own_tokenizer, stream = await use()
    # An idle thread keeps its last call until its next one: anyio's and trio's are shared.
    await collect(stream_text(other_llama(), tokenizer(), PROMPT, max_new_tokens=1))
    gc.collect()
    assert model() is None
    assert own_tokenizer() is None
    assert stream.finish_reason is FinishReason.LENGTH


async def test_streams_that_failed_do_not_keep_a_model_alive() -> None:
    async def use() -> Any:
        model = new_llama()
        with pytest.raises(ValueError, match="no_such_argument"):
            await collect(stream_text(model, tokenizer(), PROMPT, no_such_argument=1))
        return weakref.ref(model)

    model = await use()
    await collect(stream_text(other_llama(), tokenizer(), PROMPT, max_new_tokens=1))
    gc.collect()
    assert model() is None
