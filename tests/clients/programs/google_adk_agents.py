"""Google's Agent Development Kit: its agents with `LiteLlm`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


def get_weather(city: str) -> dict[str, str]:
    """The weather in a city.

    Args:
        city: the city.
    """
    return {"weather": f"Sunny in {city}."}


def agent(provider: str = "openai", **kwargs: Any) -> LlmAgent:
    model = LiteLlm(f"{provider}/{checks.MODEL}", api_base=checks.V1, api_key=checks.KEY)
    return LlmAgent(name="helper", model=model, instruction="Be short.", **kwargs)


async def events(helper: LlmAgent, text: str, *, streams: bool = False) -> AsyncIterator[Any]:
    runner = InMemoryRunner(helper, app_name="app")
    session = await runner.session_service.create_session(app_name="app", user_id="user")
    async for event in runner.run_async(
        user_id="user",
        session_id=session.id,
        new_message=types.UserContent(text),
        run_config=RunConfig(streaming_mode=StreamingMode.SSE if streams else StreamingMode.NONE),
    ):
        assert event.error_code is None, event.error_message
        yield event
    await runner.close()


async def answer(helper: LlmAgent, text: str, *, streams: bool = False) -> tuple[str, list[Any]]:
    """The last text, and the calls of functions."""
    done = [each async for each in events(helper, text, streams=streams)]
    calls = [call for each in done if not each.partial for call in each.get_function_calls()]
    return done[-1].content.parts[-1].text, calls


async def whole() -> None:
    """`Runner.run_async`, with litellm's providers `openai` and `hosted_vllm`"""
    for provider in ("openai", "hosted_vllm"):
        assert (await answer(agent(provider), checks.COUNT))[0] == checks.COUNTED


async def stream() -> None:
    """`StreamingMode.SSE`"""
    done = [each async for each in events(agent(), checks.COUNT, streams=True)]
    partial = "".join(each.content.parts[0].text for each in done if each.partial)
    assert partial == done[-1].content.parts[0].text == checks.COUNTED


async def tools() -> None:
    """`LlmAgent(tools=...)`, which sends the result back, whole and streamed"""
    for streams in (False, True):
        helper = agent(tools=[get_weather])
        text, calls = await answer(helper, checks.WEATHER, streams=streams)
        assert text == checks.COUNTED
        assert calls[0].args == {"city": "Paris"}


async def structured() -> None:
    """`LlmAgent(output_schema=...)`"""
    text, _ = await answer(agent(output_schema=Weather), checks.COUNT)
    Weather.model_validate_json(text)


async def cancel() -> None:
    """cancelling a task, with and without a stream"""
    limit = types.GenerateContentConfig(max_output_tokens=checks.LIMIT)
    for streams in (False, True):
        helper = agent(generate_content_config=limit)
        await checks.cancel_while_running(answer(helper, checks.ENDLESS, streams=streams))


checks.try_all(
    "google-adk",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool="it lets the model choose",
    structured=structured,
    cancel=cancel,
)
