"""CrewAI: its own `LLM` for OpenAI's API, alone and in agents and a crew."""

from __future__ import annotations

import os
from typing import Any

os.environ |= {"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false"}

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


@tool("get_weather")
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def model(**kwargs: Any) -> LLM:
    return LLM(f"openai/{checks.MODEL}", base_url=checks.V1, api_key=checks.KEY, **kwargs)


def agent(**kwargs: Any) -> Agent:
    return Agent(
        role="helper", goal="Answer.", backstory="You help.", llm=model(), max_iter=3, **kwargs
    )


def crew(text: str, **kwargs: Any) -> Any:
    worker = agent(tools=kwargs.pop("tools", []))
    task = Task(description=text, expected_output="An answer.", agent=worker, **kwargs)
    return Crew(agents=[worker], tasks=[task]).kickoff()


def whole() -> None:
    """`LLM.call`, `Agent.kickoff`, and `Crew.kickoff` with one task"""
    assert model().call(checks.COUNT) == checks.COUNTED
    assert agent().kickoff(checks.COUNT).raw == checks.COUNTED
    assert crew(checks.COUNT).raw == checks.COUNTED


def stream() -> None:
    """`LLM(stream=True)`"""
    assert model(stream=True).call(checks.COUNT) == checks.COUNTED


def tools() -> None:
    """`Agent(tools=...)`, which sends the result back"""
    assert agent(tools=[get_weather]).kickoff(checks.WEATHER).raw == checks.COUNTED
    assert crew(checks.WEATHER, tools=[get_weather]).raw == checks.COUNTED


def structured() -> None:
    """`response_model` of a call, `response_format` of an agent, `output_pydantic` of a task"""
    assert isinstance(model().call(checks.COUNT, response_model=Weather), Weather)
    assert isinstance(agent().kickoff(checks.COUNT, response_format=Weather).pydantic, Weather)
    assert isinstance(crew(checks.COUNT, output_pydantic=Weather).pydantic, Weather)


async def cancel() -> None:
    """cancelling a task in `LLM.acall`, with and without a stream"""
    for streams in (False, True):
        endless = model(stream=streams, max_tokens=checks.LIMIT).acall(checks.ENDLESS)
        await checks.cancel_while_running(endless)


checks.try_all(
    "crewai",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool="it lets the model choose",
    structured=structured,
    cancel=cancel,
)
