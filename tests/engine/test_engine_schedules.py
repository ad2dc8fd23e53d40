"""An engine under any schedule of requests, of any length and ending, on a real model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError, EndOfStream, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from anystreamer import Engine, FinishReason, GenerationTimeout, TextStream, Timeouts, open_engine
from anystreamer.demo import load_demo

from ..helpers.scripted import PATIENCE, until

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(60 + settings().max_examples // 4),
    pytest.mark.usefixtures("asyncio_complains_of_nothing", "one_thread_for_the_model"),
]

PROMPTS = ["one, two,", "An increasing sequence: one,", "five, six, seven, eight, nine, ten,"]
MOST = 40  # tokens

REQUESTS = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(PROMPTS),
        "max_new_tokens": st.sampled_from([1, 2, 7, MOST]),
        "stop": st.sampled_from(["", "", "e", ", s", "n, t"]),
        "is_late": st.sampled_from([False, False, False, True]),
        "is_alone": st.booleans(),  # where requests run at once, it has what they cannot have
    }
)
MOVES = st.sampled_from(
    [
        *["receive"] * 4,
        *["receive without time"] * 2,
        *["cancel a receive"] * 2,
        *["pass"] * 4,
        *["wait"] * 2,
        "read",
        "stop",
        "close",
        "leave",
        "raise",
    ]
)
STEPS = st.lists(REQUESTS | st.tuples(MOVES, st.integers(0, 5)), max_size=25)


class ChangesNothing(LogitsProcessor):
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores


@cache
def answer(prompt: str) -> tuple[int, ...]:
    """The ids that `generate()` makes of a prompt alone."""
    model: Any
    model, tokenizer = load_demo()
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=MOST, do_sample=False)
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())


class Request:
    """One stream, what it has given, and what it is to give."""

    def __init__(self, engine: Engine, batching: str, request: dict[str, Any]) -> None:
        tokenizer: Any = load_demo()[1]
        kwargs = dict(request)
        self.stop = kwargs.pop("stop")
        self.is_late = kwargs.pop("is_late")
        if self.is_late:
            kwargs["timeout"] = Timeouts(total=0.004)
        if kwargs.pop("is_alone") and batching != "continuous":
            kwargs |= {"logits_processor": [ChangesNothing()], "max_buffer_size": 1}
        self.ids = answer(request["prompt"])[: request["max_new_tokens"]]
        self.whole_text = tokenizer.decode(self.ids, skip_special_tokens=True)
        self.is_cut = bool(self.stop) and self.stop in self.whole_text
        self.text = self.whole_text.partition(self.stop)[0] if self.stop else self.whole_text
        self.context = engine.stream_text(**kwargs, stop=self.stop or ())
        self.stream: TextStream
        self.received = ""
        self.has_ended = self.is_closed = self.is_left = False

    async def receive(self) -> None:
        try:
            self.received += await self.stream.receive()
        except EndOfStream:
            self.has_ended = True
            self.check_end()
        except ClosedResourceError:
            assert self.is_closed
        except GenerationTimeout:
            assert self.is_late
            self.has_ended = True

    async def read(self) -> None:
        with fail_after(PATIENCE):
            while not (self.has_ended or self.is_closed):
                await self.receive()

    async def cancel_a_receive(self, passes: int) -> None:
        async with create_task_group() as tasks:
            tasks.start_soon(self.receive)
            for _ in range(passes):
                await checkpoint()
            tasks.cancel_scope.cancel()

    async def leave(self, error: Exception | None = None) -> None:
        self.is_left = self.is_closed = True
        try:
            await self.context.__aexit__(type(error) if error else None, error, None)
        except GenerationTimeout:
            assert self.is_late

    def check_end(self) -> None:
        reason = self.stream.finish_reason
        assert reason is not None
        if reason is not FinishReason.STOPPED:
            assert self.received == self.text
            own = {FinishReason.LENGTH, FinishReason.EOS}
            assert reason in ({FinishReason.STOP_STRING} if self.is_cut else own)

    def check(self) -> None:
        # Text that is held back for a stop string comes after all, if the model is stopped then.
        assert self.whole_text.startswith(self.received)
        assert not self.is_cut or len(self.received) < len(self.text) + len(self.stop)
        assert self.ids[: len(self.stream.token_ids)] == tuple(self.stream.token_ids)


async def follow(engine: Engine, batching: str, steps: list[Any]) -> None:
    requests: list[Request] = []
    try:
        for step in steps:
            if isinstance(step, dict):
                request = Request(engine, batching, step)
                request.stream = await request.context.__aenter__()
                requests.append(request)
            elif requests:
                await move(requests[step[1] % len(requests)], *step)
            for each in requests:
                each.check()
        for each in requests[::2]:
            await each.read()
    finally:
        for each in requests:
            if not each.is_left:
                await each.leave()
            each.check()


async def move(request: Request, name: str, number: int) -> None:
    match name:
        case "receive" if not request.has_ended:
            with fail_after(PATIENCE):
                await request.receive()
        case "receive without time" if not request.has_ended:
            with anyio.move_on_after(0):
                await request.receive()
        case "cancel a receive" if not request.has_ended:
            await request.cancel_a_receive(number)
        case "read":
            await request.read()
        case "pass":
            await checkpoint()
        case "wait":
            await anyio.sleep(0.001 * number)
        case "stop":
            request.stream.stop()
        case "close":
            await request.stream.aclose()
            request.is_closed = True
        case "leave" if not request.is_left:
            await request.leave()
        case "raise" if not request.is_left:
            await request.leave(ZeroDivisionError())


@pytest.fixture
async def engine(batching: Any) -> AsyncIterator[Engine]:
    async with open_engine(*load_demo(), batching=batching) as engine:
        yield engine


@pytest.mark.parametrize("batching", ["none", "continuous", "auto"])
@given(steps=STEPS)
@settings(
    # Each takes as many steps of the model as its requests have.
    max_examples=max(5, settings().max_examples // 10),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
async def test_any_schedule_of_requests_leaves_an_engine_sound(
    engine: Engine, batching: str, steps: list[Any]
) -> None:
    await follow(engine, batching, steps)
    await until(lambda: engine.statistics().running == engine.statistics().waiting == 0)
    async with engine.stream_text(PROMPTS[0], max_new_tokens=MOST) as stream:
        await stream.read()
    assert tuple(stream.token_ids) == answer(PROMPTS[0])
