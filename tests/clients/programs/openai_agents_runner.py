"""openai-agents: `Runner`, with the Responses API (its default) and with chat completions."""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    AsyncOpenAI,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

import checks

set_tracing_disabled(True)


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def agents(**kwargs: object) -> list[Agent]:
    """An agent for each API."""
    client = AsyncOpenAI(base_url=checks.V1)
    models = (OpenAIResponsesModel, OpenAIChatCompletionsModel)
    return [
        Agent(name="a", instructions="Be short.", model=model(checks.MODEL, client), **kwargs)
        for model in models
    ]


async def whole() -> None:
    """`Runner.run`, with the Responses API and with chat completions"""
    for agent in agents():
        assert (await Runner.run(agent, checks.COUNT)).final_output == checks.COUNTED


async def stream() -> None:
    """`Runner.run_streamed`"""
    for agent in agents():
        result = Runner.run_streamed(agent, checks.COUNT)
        parts = [
            each.data.delta
            async for each in result.stream_events()
            if each.type == "raw_response_event" and isinstance(each.data, ResponseTextDeltaEvent)
        ]
        assert "".join(parts) == result.final_output == checks.COUNTED


async def tools() -> None:
    """`Agent(tools=[function_tool])`, whole and streamed; its schema is strict by default"""
    for agent in agents(tools=[get_weather]):
        result = await Runner.run(agent, checks.WEATHER)
        assert "Sunny in Paris." in str(result.to_input_list())
        assert result.final_output == checks.COUNTED
        streamed = Runner.run_streamed(agent, checks.WEATHER)
        async for _ in streamed.stream_events():
            pass
        assert "Sunny in Paris." in str(streamed.to_input_list())


async def forced_tool() -> None:
    """`ModelSettings(tool_choice=...)`: "required" and the tool's name"""
    for choice in ("required", "get_weather"):
        settings = ModelSettings(tool_choice=choice, parallel_tool_calls=False)
        for agent in agents(tools=[get_weather], model_settings=settings):
            result = await Runner.run(agent, checks.COUNT)
            assert "Sunny in" in str(result.to_input_list())


async def structured() -> None:
    """`Agent(output_type=...)`, also beside tools"""
    for agent in agents(output_type=Weather):
        assert isinstance((await Runner.run(agent, checks.COUNT)).final_output, Weather)
    for agent in agents(output_type=Weather, tools=[get_weather]):
        result = await Runner.run(agent, checks.WEATHER)
        assert isinstance(result.final_output, Weather)
        assert "Sunny in Paris." in str(result.to_input_list())


async def cancel() -> None:
    """`RunResultStreaming.cancel`; cancelling a task in `Runner.run`"""
    for agent in agents(model_settings=ModelSettings(max_tokens=checks.LIMIT)):
        result = Runner.run_streamed(agent, checks.ENDLESS)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and isinstance(
                event.data, ResponseTextDeltaEvent
            ):
                result.cancel()
        await asyncio.to_thread(checks.until_stopped)
        await checks.cancel_while_running(Runner.run(agent, checks.ENDLESS))


checks.try_all(
    "openai-agents",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
