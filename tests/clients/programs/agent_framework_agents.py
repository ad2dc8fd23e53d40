"""Microsoft's Agent Framework: its clients for both of OpenAI's APIs, and their agents."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    city: str
    degrees: int


def get_weather(city: Annotated[str, "the city"]) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def agents(options: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
    """An agent for each API. By default it would go on from a response that the server keeps."""
    return [
        kind(model=checks.MODEL, base_url=checks.V1, api_key=checks.KEY).as_agent(
            instructions="Be short.", default_options={"store": False, **(options or {})}, **kwargs
        )
        for kind in (OpenAIChatClient, OpenAIChatCompletionClient)
    ]


async def streamed(agent: Any, text: str) -> str:
    stream = agent.run(text, stream=True)
    assert len([each async for each in stream]) > 1
    return (await stream.get_final_response()).text


async def whole() -> None:
    """`Agent.run`, with `OpenAIChatClient` (responses) and `OpenAIChatCompletionClient`"""
    for agent in agents():
        assert (await agent.run(checks.COUNT)).text == checks.COUNTED


async def stream() -> None:
    """`run(stream=True)`"""
    for agent in agents():
        assert await streamed(agent, checks.COUNT) == checks.COUNTED


async def tools() -> None:
    """`tools=...` with `store=False`, which sends the result back, and a second question"""
    for agent in agents(tools=[get_weather]):
        session = agent.create_session()
        for _ in range(2):
            answer = await agent.run(checks.WEATHER, session=session)
            assert answer.text == checks.COUNTED
            assert "Sunny in Paris." in str(answer.to_dict())
        assert await streamed(agent, checks.WEATHER) == checks.COUNTED


async def forced_tool() -> None:
    """`options={"tool_choice": ...}`: "required" and the tool's name"""
    named = {"mode": "required", "required_function_name": "get_weather"}
    for choice in ("required", named):
        for agent in agents(tools=[get_weather]):
            answer = await agent.run(checks.COUNT, options={"tool_choice": choice})
            assert "Sunny in" in str(answer.to_dict())


async def structured() -> None:
    """`options={"response_format": ...}` with a pydantic model, also beside tools"""
    for text, found in ((checks.COUNT, []), (checks.WEATHER, [get_weather])):
        for agent in agents(tools=found):
            answer = await agent.run(text, options={"response_format": Weather})
            assert isinstance(answer.value, Weather)


async def cancel() -> None:
    """cancelling a task, with and without a stream"""
    options = {"max_tokens": checks.LIMIT}

    async def stream(agent: Any) -> None:
        async for _ in agent.run(checks.ENDLESS, stream=True, options=options):
            await asyncio.sleep(0)

    async def whole(agent: Any) -> None:
        await agent.run(checks.ENDLESS, options=options)

    for ask in (stream, whole):
        for agent in agents():
            await checks.cancel_while_running(ask(agent))


checks.try_all(
    "agent-framework-openai",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
