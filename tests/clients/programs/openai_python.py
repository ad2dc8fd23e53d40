"""The openai client for Python."""

from __future__ import annotations

import asyncio
import json

from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import checks

client = OpenAI(base_url=checks.V1)


class Weather(BaseModel):
    city: str
    degrees: int


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def whole() -> None:
    """`chat.completions.create`, `completions.create`, `responses.create`"""
    done = client.chat.completions.create(model=checks.MODEL, messages=user(checks.COUNT))
    assert done.choices[0].message.content == checks.COUNTED
    assert done.usage.completion_tokens > 9
    text = client.completions.create(model=checks.MODEL, prompt="one")
    assert text.choices[0].text == checks.COUNTED.removeprefix("one")
    response = client.responses.create(model=checks.MODEL, input=checks.COUNT)
    assert response.output_text == checks.COUNTED
    assert [each.id for each in client.models.list()] == [checks.MODEL]


def stream() -> None:
    """the same with `stream=True`, `chat.completions.stream`, `responses.stream`"""
    chunks = client.chat.completions.create(
        model=checks.MODEL,
        messages=user(checks.COUNT),
        stream=True,
        stream_options={"include_usage": True},
    )
    *parts, last = list(chunks)
    assert "".join(each.choices[0].delta.content or "" for each in parts) == checks.COUNTED
    assert last.usage.completion_tokens > 9
    with client.chat.completions.stream(model=checks.MODEL, messages=user(checks.COUNT)) as events:
        text = "".join(each.delta for each in events if each.type == "content.delta")
    assert text == checks.COUNTED
    with client.responses.stream(model=checks.MODEL, input=checks.COUNT) as events:
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == checks.COUNTED


def tools() -> None:
    """`chat.completions.create(tools=...)`, the result sent back; `responses.create(tools=...)`"""
    messages = user(checks.WEATHER)
    done = client.chat.completions.create(
        model=checks.MODEL, messages=messages, tools=[checks.TOOL]
    )
    (call,) = done.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        done.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."},
    ]
    done = client.chat.completions.create(
        model=checks.MODEL, messages=messages, tools=[checks.TOOL]
    )
    assert done.choices[0].message.content == checks.COUNTED
    response = client.responses.create(
        model=checks.MODEL,
        input=checks.WEATHER,
        tools=[{"type": "function", **checks.TOOL["function"]}],
    )
    (call,) = response.output
    assert json.loads(call.arguments) == {"city": "Paris"}


def forced_tool() -> None:
    """`tool_choice="required"`, and the tool's name"""
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        done = client.chat.completions.create(
            model=checks.MODEL,
            messages=user(checks.COUNT),
            tools=[checks.TOOL],
            tool_choice=choice,
        )
        assert done.choices[0].message.tool_calls[0].function.name == "get_weather"


def structured() -> None:
    """`chat.completions.parse` and `responses.parse` with a pydantic model"""
    done = client.chat.completions.parse(
        model=checks.MODEL, messages=user(checks.COUNT), response_format=Weather
    )
    assert isinstance(done.choices[0].message.parsed, Weather)
    response = client.responses.parse(model=checks.MODEL, input=checks.COUNT, text_format=Weather)
    assert isinstance(response.output_parsed, Weather)


async def cancel() -> None:
    """leaving `async with await create(stream=True)`; cancelling a task without a stream"""
    async with AsyncOpenAI(base_url=checks.V1) as client:
        create = client.chat.completions.create
        endless = {
            "model": checks.MODEL,
            "messages": user(checks.ENDLESS),
            "max_tokens": checks.LIMIT,
        }
        async with await create(**endless, stream=True) as chunks:
            async for _ in chunks:
                break
        await asyncio.to_thread(checks.until_stopped)
        await checks.cancel_while_running(create(**endless))


checks.try_all(
    "openai",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
