"""pydantic-ai: `Agent` with its models for OpenAI's APIs."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import checks


class Weather(BaseModel):
    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def agents(**kwargs: object) -> list[Agent]:
    """An agent for each API."""
    provider = OpenAIProvider(base_url=checks.V1)
    return [
        Agent(model(checks.MODEL, provider=provider), **kwargs)
        for model in (OpenAIChatModel, OpenAIResponsesModel)
    ]


async def whole() -> None:
    """`Agent.run`, with `OpenAIChatModel` and `OpenAIResponsesModel`"""
    for agent in agents(instructions="Be short."):
        result = await agent.run(checks.COUNT)
        assert result.output == checks.COUNTED


async def stream() -> None:
    """`Agent.run_stream`"""
    for agent in agents():
        async with agent.run_stream(checks.COUNT) as result:
            parts = [each async for each in result.stream_text(delta=True, debounce_by=None)]
        assert "".join(parts) == checks.COUNTED


async def tools() -> None:
    """`Agent(tools=...)`, which sends the result back"""
    for agent in agents(tools=[get_weather]):
        result = await agent.run(checks.WEATHER)
        assert result.output == checks.COUNTED
        assert "Sunny in Paris." in str(result.all_messages())


async def forced_tool() -> None:
    """`ToolOutput`, and `tool_choice="required"` that comes of it"""
    for agent in agents(output_type=ToolOutput(Weather, strict=True), tools=[get_weather]):
        result = await agent.run(checks.COUNT)
        assert isinstance(result.output, Weather)


async def structured() -> None:
    """`output_type` by default (a tool), `NativeOutput`, also beside tools"""
    for output_type in (Weather, [Weather, int], NativeOutput(Weather)):
        for agent in agents(output_type=output_type):
            result = await agent.run(checks.COUNT)
            assert isinstance(result.output, Weather), output_type
    for agent in agents(output_type=NativeOutput(Weather), tools=[get_weather]):
        result = await agent.run(checks.WEATHER)
        assert isinstance(result.output, Weather)
        assert "Sunny in Paris." in str(result.all_messages())


async def cancel() -> None:
    """leaving `run_stream`; cancelling a task in `run`"""
    for agent in agents(model_settings={"max_tokens": checks.LIMIT}):
        async with agent.run_stream(checks.ENDLESS) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                break
        await asyncio.to_thread(checks.until_stopped)
        await checks.cancel_while_running(agent.run(checks.ENDLESS))


checks.try_all(
    "pydantic-ai-slim",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
