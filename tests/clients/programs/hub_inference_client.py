"""huggingface_hub: `InferenceClient`."""

from __future__ import annotations

import asyncio
import json

from huggingface_hub import AsyncInferenceClient, InferenceClient

import checks

client = InferenceClient(base_url=checks.V1, api_key=checks.KEY)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def whole() -> None:
    """`chat_completion`, with the model's name"""
    done = client.chat_completion(user(checks.COUNT), model=checks.MODEL)
    assert done.choices[0].message.content == checks.COUNTED


def stream() -> None:
    """`chat_completion(stream=True)`"""
    chunks = list(client.chat_completion(user(checks.COUNT), model=checks.MODEL, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == checks.COUNTED


def tools() -> None:
    """`chat_completion(tools=...)`, the result sent back"""
    messages = user(checks.WEATHER)
    done = client.chat_completion(messages, model=checks.MODEL, tools=[checks.TOOL])
    (call,) = done.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        done.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."},
    ]
    done = client.chat_completion(messages, model=checks.MODEL, tools=[checks.TOOL])
    assert done.choices[0].message.content == checks.COUNTED


def forced_tool() -> None:
    """`tool_choice="required"`, and the tool's name"""
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        done = client.chat_completion(
            user(checks.COUNT), model=checks.MODEL, tools=[checks.TOOL], tool_choice=choice
        )
        assert done.choices[0].message.tool_calls[0].function.name == "get_weather"


def structured() -> None:
    """`response_format` with a schema, in the shape of OpenAI"""
    form = {
        "type": "json_schema",
        "json_schema": {"name": "weather", "schema": checks.PARAMETERS, "strict": True},
    }
    done = client.chat_completion(user(checks.COUNT), model=checks.MODEL, response_format=form)
    assert json.loads(done.choices[0].message.content) == {"city": ""}


async def cancel() -> None:
    """leaving the stream of `AsyncInferenceClient`; cancelling a task"""
    async with AsyncInferenceClient(base_url=checks.V1, api_key=checks.KEY) as client:
        endless = {
            "messages": user(checks.ENDLESS),
            "model": checks.MODEL,
            "max_tokens": checks.LIMIT,
        }
        chunks = await client.chat_completion(**endless, stream=True)
        async for _ in chunks:
            break
        await chunks.aclose()
        await asyncio.to_thread(checks.until_stopped)
        await checks.cancel_while_running(client.chat_completion(**endless))


checks.try_all(
    "huggingface_hub",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
