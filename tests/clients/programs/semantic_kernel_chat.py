"""Semantic Kernel: its chat completion service, in a kernel with a plugin."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from openai import AsyncOpenAI
from pydantic import BaseModel
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

import checks


class Weather(BaseModel):
    city: str
    degrees: int


class Plugin:
    """A plugin with a function."""

    @kernel_function(name="weather", description="The weather in a city.")
    def weather(self, city: Annotated[str, "the city"]) -> str:
        return f"Sunny in {city}."


def service() -> OpenAIChatCompletion:
    return OpenAIChatCompletion(
        ai_model_id=checks.MODEL, async_client=AsyncOpenAI(base_url=checks.V1)
    )


def user(text: str) -> ChatHistory:
    history = ChatHistory(system_message="Be short.")
    history.add_user_message(text)
    return history


def settings(**kwargs: Any) -> OpenAIChatPromptExecutionSettings:
    return OpenAIChatPromptExecutionSettings(**kwargs)


def kernel() -> Kernel:
    made = Kernel()
    made.add_plugin(Plugin(), plugin_name="get")
    return made


async def whole() -> None:
    """`get_chat_message_content`"""
    answer = await service().get_chat_message_content(user(checks.COUNT), settings())
    assert str(answer) == checks.COUNTED


async def stream() -> None:
    """`get_streaming_chat_message_content`"""
    parts = service().get_streaming_chat_message_content(user(checks.COUNT), settings())
    assert "".join([str(each) async for each in parts]) == checks.COUNTED


async def tools() -> None:
    """`FunctionChoiceBehavior.Auto`, which sends the result back, whole and streamed"""
    auto = settings(function_choice_behavior=FunctionChoiceBehavior.Auto())
    history = user(checks.WEATHER)
    answer = await service().get_chat_message_content(history, auto, kernel=kernel())
    assert str(answer) == checks.COUNTED
    assert "Sunny in Paris." in str(history.messages)
    parts = service().get_streaming_chat_message_content(
        user(checks.WEATHER), auto, kernel=kernel()
    )
    assert "".join([str(each) async for each in parts]).endswith(checks.COUNTED)


async def forced_tool() -> None:
    """`FunctionChoiceBehavior.Required`"""
    required = settings(function_choice_behavior=FunctionChoiceBehavior.Required())
    history = user(checks.COUNT)
    await service().get_chat_message_content(history, required, kernel=kernel())
    assert "Sunny in" in str([each.items for each in history.messages])


async def structured() -> None:
    """`response_format` with a pydantic model, also beside functions"""
    history = user(checks.COUNT)
    answer = await service().get_chat_message_content(history, settings(response_format=Weather))
    Weather.model_validate_json(str(answer))
    beside = settings(
        response_format=Weather, function_choice_behavior=FunctionChoiceBehavior.Auto()
    )
    history = user(checks.WEATHER)
    answer = await service().get_chat_message_content(history, beside, kernel=kernel())
    Weather.model_validate_json(str(answer))
    assert "Sunny in Paris." in str(history.messages)


async def cancel() -> None:
    """cancelling a task, with and without a stream"""
    limited = settings(max_completion_tokens=checks.LIMIT)

    async def stream() -> None:
        async for _ in service().get_streaming_chat_message_content(user(checks.ENDLESS), limited):
            await asyncio.sleep(0)

    await checks.cancel_while_running(stream())
    await checks.cancel_while_running(
        service().get_chat_message_content(user(checks.ENDLESS), limited)
    )


checks.try_all(
    "semantic-kernel",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
