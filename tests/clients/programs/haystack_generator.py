"""Haystack: its generators for OpenAI's APIs, and an agent."""

from __future__ import annotations

import asyncio
from typing import Any

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    city: str
    degrees: int


WEATHER = Tool(
    name="get_weather",
    description="The weather in a city.",
    parameters=checks.PARAMETERS,
    function=lambda city: f"Sunny in {city}.",
)


def generators(**kwargs: Any) -> list[Any]:
    """A generator for each API."""
    kinds = (OpenAIChatGenerator, OpenAIResponsesChatGenerator)
    return [kind(model=checks.MODEL, api_base_url=checks.V1, **kwargs) for kind in kinds]


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage.from_system("Be short."), ChatMessage.from_user(text)]


def whole() -> None:
    """`OpenAIChatGenerator.run`, `OpenAIResponsesChatGenerator.run`"""
    for generator in generators():
        (reply,) = generator.run(user(checks.COUNT))["replies"]
        assert reply.text == checks.COUNTED


def stream() -> None:
    """`streaming_callback`"""
    for generator in generators():
        deltas: list[str] = []

        def take(chunk: Any, deltas: list[str] = deltas) -> None:
            deltas.append(chunk.content)

        (reply,) = generator.run(user(checks.COUNT), streaming_callback=take)["replies"]
        assert "".join(deltas) == reply.text == checks.COUNTED


def tools() -> None:
    """`Agent(tools=...)`, which sends the result back, whole and streamed; `tools_strict=True`"""
    for kwargs in ({}, {"tools_strict": True}, {"streaming_callback": lambda chunk: None}):
        for generator in generators(**kwargs):
            agent = Agent(chat_generator=generator, tools=[WEATHER])
            messages = agent.run(user(checks.WEATHER))["messages"]
            assert messages[-1].text == checks.COUNTED
            assert "Sunny in Paris." in str(messages)


def forced_tool() -> None:
    """`generation_kwargs={"tool_choice": ...}`: "required" and the tool's name"""
    chat, responses = generators(tools=[WEATHER])
    named = {"type": "function", "function": {"name": "get_weather"}}
    for generator, choice in (
        (chat, "required"),
        (chat, named),
        (responses, "required"),
        (responses, {"type": "function", "name": "get_weather"}),
    ):
        (reply,) = generator.run(user(checks.COUNT), generation_kwargs={"tool_choice": choice})[
            "replies"
        ]
        assert reply.tool_call.tool_name == "get_weather"


def structured() -> None:
    """`response_format` and `text_format` with a pydantic model"""
    chat, responses = generators()
    for generator, kwargs in (
        (chat, {"response_format": Weather}),
        (responses, {"text_format": Weather}),
    ):
        (reply,) = generator.run(user(checks.COUNT), generation_kwargs=kwargs)["replies"]
        Weather.model_validate_json(reply.text)


async def cancel() -> None:
    """cancelling a task in `run_async`, with and without a stream"""
    limits = ({"max_completion_tokens": checks.LIMIT}, {"max_output_tokens": checks.LIMIT})

    async def take(chunk: object) -> None:
        await asyncio.sleep(0)

    for callback in (None, take):
        for generator, kwargs in zip(generators(), limits, strict=True):
            await checks.cancel_while_running(
                generator.run_async(
                    user(checks.ENDLESS), streaming_callback=callback, generation_kwargs=kwargs
                )
            )


checks.try_all(
    "haystack-ai",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
