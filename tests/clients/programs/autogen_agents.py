"""AutoGen: `OpenAIChatCompletionClient`, alone and in an `AssistantAgent`."""

from __future__ import annotations

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.models import UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    city: str
    degrees: int


async def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


TOOL = FunctionTool(get_weather, description="The weather in a city.")


def client(**kwargs: object) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=checks.MODEL,
        base_url=checks.V1,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "family": "unknown",
            "structured_output": True,
        },
        **kwargs,
    )


def user(text: str) -> list[UserMessage]:
    return [UserMessage(content=text, source="user")]


async def whole() -> None:
    """`create`, `AssistantAgent.run`"""
    assert (await client().create(user(checks.COUNT))).content == checks.COUNTED
    result = await AssistantAgent("one", client()).run(task=checks.COUNT)
    assert result.messages[-1].content == checks.COUNTED


async def stream() -> None:
    """`create_stream`, `AssistantAgent.run_stream(model_client_stream=True)`"""
    parts = [each async for each in client().create_stream(user(checks.COUNT))]
    assert "".join(parts[:-1]) == parts[-1].content == checks.COUNTED
    agent = AssistantAgent("one", client(), model_client_stream=True)
    *_, result = [each async for each in agent.run_stream(task=checks.COUNT)]
    assert result.messages[-1].content == checks.COUNTED


async def tools() -> None:
    """`AssistantAgent(tools=...)`, which sends the result back"""
    agent = AssistantAgent("one", client(), tools=[get_weather], reflect_on_tool_use=True)
    result = await agent.run(task=checks.WEATHER)
    assert "Sunny in Paris." in str(result.messages)
    assert result.messages[-1].content == checks.COUNTED


async def forced_tool() -> None:
    """`create(tool_choice=...)`: "required" and a tool"""
    for choice in ("required", TOOL):
        done = await client().create(user(checks.COUNT), tools=[TOOL], tool_choice=choice)
        assert done.content[0].name == "get_weather"


async def structured() -> None:
    """`create(json_output=...)`, `AssistantAgent(output_content_type=...)`"""
    done = await client().create(user(checks.COUNT), json_output=Weather)
    Weather.model_validate_json(done.content)
    agent = AssistantAgent("one", client(), output_content_type=Weather)
    result = await agent.run(task=checks.COUNT)
    assert isinstance(result.messages[-1].content, Weather)


async def cancel() -> None:
    """leaving `create_stream`; a `CancellationToken`"""
    endless = client(max_tokens=checks.LIMIT)
    chunks = endless.create_stream(user(checks.ENDLESS))
    async for _ in chunks:
        break
    await chunks.aclose()
    await asyncio.to_thread(checks.until_stopped)
    token = CancellationToken()
    create = endless.create(user(checks.ENDLESS), cancellation_token=token)
    task = asyncio.create_task(create)
    await asyncio.to_thread(checks.until_running)
    token.cancel()
    await asyncio.to_thread(checks.until_stopped)
    task.cancel()


checks.try_all(
    "autogen-ext",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
