"""agno: an agent with its models for OpenAI's APIs, and for servers like it."""

from __future__ import annotations

from typing import Any

from agno.agent import Agent
from agno.models.openai import OpenAIChat, OpenAIResponses
from agno.models.openai.like import OpenAILike
from agno.tools import tool
from pydantic import BaseModel

import checks

MODELS = (OpenAILike, OpenAIChat, OpenAIResponses)


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: the city.
    """
    return f"Sunny in {city}."


def agent(kind: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Agent:
    model = kind(id=checks.MODEL, base_url=checks.V1, api_key=checks.KEY, **options or {})
    return Agent(model=model, telemetry=False, instructions="Be short.", **kwargs)


def whole() -> None:
    """`Agent.run`, with `OpenAILike`, `OpenAIChat` and `OpenAIResponses`"""
    for kind in MODELS:
        assert agent(kind).run(checks.COUNT).content == checks.COUNTED, kind


def stream() -> None:
    """`run(stream=True)`"""
    for kind in MODELS:
        events = agent(kind).run(checks.COUNT, stream=True)
        assert "".join(each.content or "" for each in events) == checks.COUNTED, kind


def tools() -> None:
    """`Agent(tools=...)`, which sends the result back, whole and streamed"""
    for kind in MODELS:
        worker = agent(kind, tools=[get_weather])
        *_, streamed = worker.run(checks.WEATHER, stream=True, yield_run_output=True)
        for answer in (worker.run(checks.WEATHER), streamed):
            assert answer.content == checks.COUNTED, kind
            assert answer.tools[0].result == "Sunny in Paris.", kind


def forced_tool() -> None:
    """`Agent(tool_choice=...)`: "required" and the tool's name, of a tool that ends the run"""
    # Its other tools are forced again and again: it never takes the choice back.
    ending = tool(stop_after_tool_call=True)(get_weather)
    named = {"type": "function", "function": {"name": "get_weather"}}
    for kind in MODELS:
        # It hands the choice on as it is, and the Responses API has another form of a name.
        for choice in ("required",) if kind is OpenAIResponses else ("required", named):
            answer = agent(kind, tools=[ending], tool_choice=choice).run(checks.COUNT)
            assert answer.tools[0].tool_name == "get_weather", kind


def structured() -> None:
    """`Agent(output_schema=...)`, also beside tools"""
    for kind in MODELS:
        answer = agent(kind, output_schema=Weather).run(checks.COUNT)
        assert isinstance(answer.content, Weather), kind
        answer = agent(kind, output_schema=Weather, tools=[get_weather]).run(checks.WEATHER)
        assert isinstance(answer.content, Weather), kind
        assert answer.tools[0].result == "Sunny in Paris.", kind


async def cancel() -> None:
    """cancelling a task in `arun`, with and without a stream"""
    for kind in MODELS:
        limit = "max_output_tokens" if kind is OpenAIResponses else "max_tokens"
        endless = agent(kind, {limit: checks.LIMIT})

        async def read(worker: Agent = endless) -> None:
            async for _ in worker.arun(checks.ENDLESS, stream=True):
                pass

        await checks.cancel_while_running(endless.arun(checks.ENDLESS))
        await checks.cancel_while_running(read())


checks.try_all(
    "agno",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
