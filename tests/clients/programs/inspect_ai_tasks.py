"""inspect_ai: evaluations, with its providers `openai-api` and `openai`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, Model, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel

import checks

os.environ |= {"LOCAL_BASE_URL": checks.V1, "LOCAL_API_KEY": checks.KEY}


class Weather(BaseModel):
    city: str
    degrees: int


@tool
def get_weather() -> Tool:
    async def execute(city: str) -> str:
        """The weather in a city.

        Args:
            city: the city.
        """
        return f"Sunny in {city}."

    return execute


def models(**config: Any) -> list[Model]:
    """A model of each provider."""
    return [
        get_model(f"openai-api/local/{checks.MODEL}", config=GenerateConfig(**config)),
        get_model(
            f"openai/{checks.MODEL}",
            base_url=checks.V1,
            responses_api=True,
            config=GenerateConfig(**config),
        ),
    ]


def evaluate(text: str, *solvers: Any, **config: Any) -> list[Any]:
    """The samples of an evaluation with each model."""
    task = Task(
        dataset=[Sample(input=text, target=checks.COUNTED)], solver=solvers, scorer=includes()
    )
    logs = eval(task, model=models(**config), display="none", log_dir="logs", retry_on_error=0)
    for log in logs:
        assert log.status == "success", log.error
    return [log.samples[0] for log in logs]


def whole() -> None:
    """`eval` with `openai-api/...` (chat completions) and `openai/...` (responses)"""
    for sample in evaluate(checks.COUNT, generate()):
        assert sample.output.completion == checks.COUNTED
        assert sample.scores["includes"].value == "C"
        assert sample.output.usage.output_tokens > 9


def tools() -> None:
    """`use_tools`, which sends the result back"""
    for sample in evaluate(checks.WEATHER, use_tools(get_weather()), generate()):
        assert sample.output.completion == checks.COUNTED
        assert any("Sunny in Paris." in str(each.content) for each in sample.messages)


def forced_tool() -> None:
    """`generate(tool_choice=...)`: "any" and a `ToolFunction`"""

    async def ask(model: Model, choice: Any) -> Any:
        return await model.generate(checks.COUNT, tools=[get_weather()], tool_choice=choice)

    for choice in ("any", ToolFunction("get_weather")):
        for model in models():
            output = asyncio.run(ask(model, choice))
            assert output.message.tool_calls[0].function == "get_weather"


def structured() -> None:
    """`response_schema`"""
    schema = ResponseSchema(name="weather", json_schema=json_schema(Weather), strict=True)
    for sample in evaluate(checks.COUNT, generate(), response_schema=schema):
        Weather.model_validate_json(sample.output.completion)


async def cancel() -> None:
    """cancelling a task in `generate`"""
    for model in models(max_tokens=checks.LIMIT):
        await checks.cancel_while_running(model.generate(checks.ENDLESS))


checks.try_all(
    "inspect-ai",
    whole=whole,
    stream="an evaluation reads whole answers",
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
