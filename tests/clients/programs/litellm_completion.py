"""litellm, with its provider `openai` and an address."""

from __future__ import annotations

import asyncio
import json

import litellm
from pydantic import BaseModel

import checks

SERVER = {"model": f"openai/{checks.MODEL}", "api_base": checks.V1, "api_key": checks.KEY}


class Weather(BaseModel):
    city: str
    degrees: int


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def whole() -> None:
    """`completion`, `text_completion`, `responses`; also with the provider `hosted_vllm`"""
    for provider in ("openai", "hosted_vllm"):
        server = SERVER | {"model": f"{provider}/{checks.MODEL}"}
        done = litellm.completion(**server, messages=user(checks.COUNT))
        assert done.choices[0].message.content == checks.COUNTED
    text = litellm.text_completion(
        **SERVER | {"model": f"text-completion-openai/{checks.MODEL}"}, prompt="one"
    )
    assert text.choices[0].text == checks.COUNTED.removeprefix("one")
    response = litellm.responses(**SERVER, input=checks.COUNT)
    assert response.output[0].content[0].text == checks.COUNTED


def stream() -> None:
    """`completion(stream=True)`, with usage"""
    chunks = list(
        litellm.completion(
            **SERVER,
            messages=user(checks.COUNT),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == checks.COUNTED
    assert chunks[-1].usage.completion_tokens > 9


def tools() -> None:
    """`completion(tools=...)`, the result sent back"""
    messages = user(checks.WEATHER)
    done = litellm.completion(**SERVER, messages=messages, tools=[checks.TOOL])
    (call,) = done.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {
        "role": "tool",
        "tool_call_id": call.id,
        "name": "get_weather",
        "content": "Sunny.",
    }
    messages += [done.choices[0].message, result]
    done = litellm.completion(**SERVER, messages=messages, tools=[checks.TOOL])
    assert done.choices[0].message.content == checks.COUNTED


def forced_tool() -> None:
    """`tool_choice="required"`, and the tool's name"""
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        done = litellm.completion(
            **SERVER, messages=user(checks.COUNT), tools=[checks.TOOL], tool_choice=choice
        )
        assert done.choices[0].message.tool_calls[0].function.name == "get_weather"


def structured() -> None:
    """`response_format` with a pydantic model"""
    done = litellm.completion(**SERVER, messages=user(checks.COUNT), response_format=Weather)
    Weather.model_validate_json(done.choices[0].message.content)


async def cancel() -> None:
    """closing the stream of `acompletion`; cancelling a task"""
    endless = {**SERVER, "messages": user(checks.ENDLESS), "max_tokens": checks.LIMIT}
    chunks = await litellm.acompletion(**endless, stream=True)
    async for _ in chunks:
        break
    await chunks.aclose()
    await asyncio.to_thread(checks.until_stopped)
    await checks.cancel_while_running(litellm.acompletion(**endless))


checks.try_all(
    "litellm",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
