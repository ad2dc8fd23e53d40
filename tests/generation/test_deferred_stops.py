"""Devices on which generate() learns of a stop one step late."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..helpers.llama_streams import ENDLESS, PROMPT, collect, stream_llama
from ..helpers.own_ends import OWN_ENDS
from ..helpers.tiny_models import llama, steps_of

pytestmark = pytest.mark.torch


class DelayedEvent:
    """In place of a device's event: a CPU has none to wait for."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture
def deferred_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on MPS: tokens are put a step late, and the step after a stop is computed and undone."""
    from transformers.generation import utils

    if not hasattr(utils, "DeferredStopCheck"):
        pytest.skip("this release of transformers has no deferred stops")
    monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *a, **k: True))
    monkeypatch.setattr(torch, "Event", DelayedEvent)


@pytest.mark.usefixtures("deferred_stops")
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


@pytest.mark.usefixtures("deferred_stops")
@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_a_stop_on_a_device_that_stops_a_step_late(stop: str | tuple[()]) -> None:
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**ENDLESS, stop=stop) as stream:
            await stream.read()
    assert steps.count <= 4
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()
