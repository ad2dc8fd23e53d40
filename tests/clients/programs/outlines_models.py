"""outlines: its model for OpenAI's API, with the official client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import outlines
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


def model(make: Callable[..., Any] = outlines.from_openai) -> Any:
    return make(OpenAI(base_url=checks.V1), checks.MODEL)


def whole() -> None:
    """`from_openai`, `from_vllm`, `from_sglang`"""
    for make in (outlines.from_openai, outlines.from_vllm, outlines.from_sglang):
        assert model(make)(checks.COUNT) == checks.COUNTED


def stream() -> None:
    """`stream`"""
    assert "".join(model().stream(checks.COUNT)) == checks.COUNTED


def structured() -> None:
    """a pydantic model, with `from_openai` and `from_sglang`; `from_vllm` needs vLLM's own field"""
    for make in (outlines.from_openai, outlines.from_sglang):
        Weather.model_validate_json(model(make)(checks.COUNT, Weather))
        Weather.model_validate_json("".join(model(make).stream(checks.COUNT, Weather)))


async def cancel() -> None:
    """cancelling a task of `from_openai(AsyncOpenAI())`"""
    async with AsyncOpenAI(base_url=checks.V1) as client:
        endless = outlines.from_openai(client, checks.MODEL)
        await checks.cancel_while_running(endless(checks.ENDLESS, max_tokens=checks.LIMIT))


checks.try_all(
    "outlines",
    whole=whole,
    stream=stream,
    tools="it has none",
    forced_tool="it has none",
    structured=structured,
    cancel=cancel,
)
