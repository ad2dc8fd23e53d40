"""langchain-openai: `ChatOpenAI`."""

from __future__ import annotations

import asyncio

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

import checks

model = ChatOpenAI(model=checks.MODEL, base_url=checks.V1)


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def whole() -> None:
    """`invoke`, also with `use_responses_api=True`, and `batch`"""
    answer = model.invoke(checks.COUNT)
    assert answer.text == checks.COUNTED
    assert answer.usage_metadata["output_tokens"] > 9
    assert [each.text for each in model.batch([checks.COUNT] * 2)] == [checks.COUNTED] * 2
    other = ChatOpenAI(model=checks.MODEL, base_url=checks.V1, use_responses_api=True)
    assert other.invoke(checks.COUNT).text == checks.COUNTED


def stream() -> None:
    """`stream`"""
    chunks = list(model.stream(checks.COUNT))
    assert "".join(each.text for each in chunks) == checks.COUNTED


def tools() -> None:
    """`bind_tools`, the result sent back"""
    bound = model.bind_tools([get_weather])
    question = HumanMessage(checks.WEATHER)
    answer = bound.invoke([question])
    (call,) = answer.tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content == "Sunny in Paris."
    assert bound.invoke([question, answer, result]).text == checks.COUNTED


def forced_tool() -> None:
    """`bind_tools(tool_choice=...)` with "any" and the tool's name; `strict=True`"""
    for options in ({}, {"strict": True}, {"parallel_tool_calls": False}):
        for choice in ("any", "get_weather"):
            bound = model.bind_tools([get_weather], tool_choice=choice, **options)
            assert bound.invoke(checks.COUNT).tool_calls[0]["name"] == "get_weather"


def structured() -> None:
    """`with_structured_output`, each method; `response_format` beside tools"""
    assert isinstance(model.with_structured_output(Weather).invoke(checks.COUNT), Weather)
    for method in ("json_schema", "function_calling"):
        bound = model.with_structured_output(Weather, method=method)
        assert isinstance(bound.invoke(checks.COUNT), Weather), method
    bound = model.with_structured_output(None, method="json_mode")
    assert isinstance(bound.invoke(checks.COUNT), dict)
    bound = model.bind_tools([get_weather], response_format=Weather, strict=True)
    assert bound.invoke(checks.WEATHER).tool_calls[0]["args"] == {"city": "Paris"}
    Weather.model_validate_json(bound.invoke(checks.COUNT).text)


async def cancel() -> None:
    """leaving `astream`; cancelling a task in `ainvoke`"""
    endless = ChatOpenAI(model=checks.MODEL, base_url=checks.V1, max_tokens=checks.LIMIT)
    chunks = endless.astream(checks.ENDLESS)
    async for _ in chunks:
        break
    await chunks.aclose()
    await asyncio.to_thread(checks.until_stopped)
    await checks.cancel_while_running(endless.ainvoke(checks.ENDLESS))


checks.try_all(
    "langchain-openai",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
