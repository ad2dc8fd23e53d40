"""Devices on which generate() learns of a stop one step late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..helpers.deferred_stops import deferred_stops
from ..helpers.llama_streams import ENDLESS, PROMPT, collect, stream_llama
from ..helpers.own_ends import OWN_ENDS
from ..helpers.tiny_models import llama, steps_of

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def stops_are_deferred() -> Iterator[None]:
    with deferred_stops():
        yield


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize("end", ["eos", "length", "criteria", "stop string"])
async def test_a_device_that_stops_a_step_late(end: str, stop: str | tuple[()]) -> None:
    """What is delivered is what `generate()` returns, with or without a look at each step."""
    _, kwargs = OWN_ENDS[end]
    arguments = {"stop": stop} | kwargs()
    _, stream = await collect(stream_llama(**arguments))
    assert stream.finish_reason is OWN_ENDS[end][0]
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()
    assert stream.usage.computed_tokens == 3


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_a_stop_on_a_device_that_stops_a_step_late(stop: str | tuple[()]) -> None:
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**ENDLESS, stop=stop) as stream:
            await stream.read()
    assert steps.count <= 4
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()
