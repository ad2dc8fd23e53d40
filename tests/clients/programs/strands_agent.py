"""Strands Agents: an agent with its models for OpenAI's APIs."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel
from strands import Agent, tool
from strands.models.openai import OpenAIModel

import checks


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: the city.
    """
    return f"Sunny in {city}."


def agent(params: dict[str, Any] | None = None, **kwargs: Any) -> Agent:
    model = OpenAIModel(
        client_args={"base_url": checks.V1, "api_key": checks.KEY},
        model_id=checks.MODEL,
        params=params or {},
    )
    return Agent(model=model, callback_handler=None, system_prompt="Be short.", **kwargs)


def stream() -> None:
    """`Agent`, which always streams; a second question"""
    talk = agent()
    for _ in range(2):
        assert str(talk(checks.COUNT)).strip() == checks.COUNTED


def tools() -> None:
    """`Agent(tools=...)`, which sends the result back"""
    talk = agent(tools=[get_weather])
    assert str(talk(checks.WEATHER)).strip() == checks.COUNTED
    assert "Sunny in Paris." in str(talk.messages)


def forced_tool() -> None:
    """`structured_output_model`, which forces a tool"""
    result = agent(tools=[get_weather])(checks.COUNT, structured_output_model=Weather)
    assert isinstance(result.structured_output, Weather)


async def structured() -> None:
    """`OpenAIModel.structured_output`"""
    messages = [{"role": "user", "content": [{"text": checks.COUNT}]}]
    parts = agent().model.structured_output(Weather, messages)
    *_, last = [each async for each in parts]
    assert isinstance(last["output"], Weather)


async def cancel() -> None:
    """cancelling a task in `invoke_async`; leaving `stream_async`"""
    limited = {"max_tokens": checks.LIMIT}
    await checks.cancel_while_running(agent(limited).invoke_async(checks.ENDLESS))
    events = agent(limited).stream_async(checks.ENDLESS)
    async for event in events:
        if "data" in event:
            break
    await events.aclose()
    await asyncio.to_thread(checks.until_stopped)


checks.try_all(
    "strands-agents",
    whole="it always streams",
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
