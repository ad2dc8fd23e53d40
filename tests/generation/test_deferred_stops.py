"""Devices on which generate() learns of a stop one step late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import MaxTimeCriteria, StoppingCriteria

from anystreamer import FinishReason, stream_batch

from ..helpers.deferred_stops import deferred_stops
from ..helpers.llama_streams import ENDLESS, PROMPT, collect, stream_llama
from ..helpers.own_ends import OWN_ENDS
from ..helpers.tiny_models import SayRows, ids_of, llama, steps_of, tokenizer

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def stops_are_deferred() -> Iterator[None]:
    with deferred_stops():
        yield


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize(
    "end", ["eos", "length", "criteria", "transformers' criteria", "stop string"]
)
async def test_a_device_that_stops_a_step_late(end: str, stop: str | tuple[()]) -> None:
    """What is delivered is what `generate()` returns, with or without a look at each step."""
    _, kwargs = OWN_ENDS[end]
    arguments = {"stop": stop} | kwargs()
    _, stream = await collect(stream_llama(**arguments))
    assert stream.finish_reason is OWN_ENDS[end][0]
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()
    assert stream.usage.computed_tokens == 3


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("how", ["setting", "criterion"])
async def test_the_time_on_a_device_that_stops_a_step_late(
    how: str, rows: int, stop: str | tuple[()]
) -> None:
    criterion = MaxTimeCriteria(max_time=900.0)

    def take_time() -> None:
        time.sleep(0.2)
        criterion.initial_timestamp -= 1000

    arguments: dict[str, Any] = {"max_time": 0.1} if how == "setting" else {}
    if how == "criterion":
        arguments["stopping_criteria"] = [criterion]
    prompts = [PROMPT] * rows
    with steps_of(llama(), {3: take_time}):
        async with stream_batch(
            llama(), tokenizer(), prompts, **arguments, **ENDLESS, stop=stop
        ) as stream:
            await stream.read()
    reason = FinishReason.TIME if how == "setting" else FinishReason.CRITERIA
    assert stream.finish_reason == [reason] * rows
    assert stream.token_ids == stream.output[:, len(PROMPT) :].tolist()


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_a_stop_on_a_device_that_stops_a_step_late(stop: str | tuple[()]) -> None:
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**ENDLESS, stop=stop) as stream:
            await stream.read()
    assert steps.count <= 4
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()


class LastIs(StoppingCriteria):
    def __init__(self, letter: str) -> None:
        self.id = ids_of(letter)[0]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] == self.id


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize("how", ["time", "stop"])
async def test_a_criterion_of_a_step_that_is_undone(how: str, stop: str | tuple[()]) -> None:
    """It would end the rows then, by what fills them up. They have ended in the step before."""
    time_criterion = MaxTimeCriteria(max_time=900.0)

    def end_all_in_step_3(input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        if input_ids.shape[1] == len("one") + 3:
            if how == "stop":
                stream.stop()
            else:
                time_criterion.initial_timestamp -= 1000
        return False

    async with stream_batch(
        llama(),
        tokenizer(),
        ["one", "two"],
        logits_processor=[SayRows(ids_of("abcdefgh"), ids_of("ijklmnop"))],
        pad_token_id=ids_of("Z")[0],
        stopping_criteria=[LastIs("Z"), end_all_in_step_3, time_criterion],
        stop=stop,
        **ENDLESS,
    ) as stream:
        await stream.read()
    assert stream.token_ids == [ids_of("abc"), ids_of("ijk")]
    reason = FinishReason.STOPPED if how == "stop" else FinishReason.CRITERIA
    assert stream.finish_reason == [reason, reason]
