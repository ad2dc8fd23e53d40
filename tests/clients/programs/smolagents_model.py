"""smolagents: `OpenAIModel`, alone and in a `ToolCallingAgent`."""

from __future__ import annotations

import gc

from smolagents import ChatMessage, OpenAIModel, ToolCallingAgent, tool

import checks


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: the city.
    """
    return f"Sunny in {city}."


def model(**kwargs: object) -> OpenAIModel:
    return OpenAIModel(model_id=checks.MODEL, api_base=checks.V1, api_key=checks.KEY, **kwargs)


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=[{"type": "text", "text": text}])]


def whole() -> None:
    """`generate`, with the stop strings of its agents"""
    answer = model().generate(user(checks.COUNT), stop_sequences=["Observation:"])
    assert answer.content == checks.COUNTED


def stream() -> None:
    """`generate_stream`"""
    deltas = [each.content or "" for each in model().generate_stream(user(checks.COUNT))]
    assert "".join(deltas) == checks.COUNTED


def forced_tool() -> None:
    """`ToolCallingAgent.run`, whose every request has `tool_choice="required"`"""
    agent = ToolCallingAgent([get_weather], model(), max_steps=3)
    agent.run(checks.COUNT)
    called = [call.name for step in agent.memory.steps for call in getattr(step, "tool_calls", ())]
    assert called == ["final_answer"]


def structured() -> None:
    """`generate(response_format=...)`, as in `CodeAgent(use_structured_outputs_internally=True)`"""
    form = {"name": "weather", "strict": True, "schema": checks.PARAMETERS}
    answer = model().generate(
        user(checks.COUNT), response_format={"type": "json_schema", "json_schema": form}
    )
    assert answer.content == '{"city":""}'


def cancel() -> None:
    """closing `generate_stream`, and a garbage collection: it leaves OpenAI's stream open"""
    chunks = model(max_tokens=checks.LIMIT).generate_stream(user(checks.ENDLESS))
    next(chunks)
    chunks.close()
    del chunks
    gc.collect()
    checks.until_stopped()


checks.try_all(
    "smolagents",
    whole=whole,
    stream=stream,
    tools="it always forces one",
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
