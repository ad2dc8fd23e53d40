"""mem0: its language model for OpenAI's API, which extracts memories, and decides about tools."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"

from mem0.configs.llms.openai import OpenAIConfig
from mem0.configs.llms.vllm import VllmConfig
from mem0.llms.openai import OpenAILLM
from mem0.llms.vllm import VllmLLM

import checks


def models(**kwargs: Any) -> list[Any]:
    shared = {"model": checks.MODEL, "api_key": checks.KEY, **kwargs}
    return [
        OpenAILLM(OpenAIConfig(openai_base_url=checks.V1, **shared)),
        VllmLLM(VllmConfig(vllm_base_url=checks.V1, **shared)),
    ]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def whole() -> None:
    """`generate_response` of `OpenAILLM` and `VllmLLM`"""
    for model in models():
        assert model.generate_response(user(checks.COUNT)) == checks.COUNTED


def tools() -> None:
    """`generate_response(tools=...)`"""
    for model in models():
        done = model.generate_response(user(checks.WEATHER), tools=[checks.TOOL])
        assert done["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "Paris"}}]


def forced_tool() -> None:
    """`generate_response(tool_choice="required")`"""
    for model in models():
        done = model.generate_response(
            user(checks.COUNT), tools=[checks.TOOL], tool_choice="required"
        )
        assert done["tool_calls"][0]["name"] == "get_weather"


def structured() -> None:
    """`response_format={"type": "json_object"}`, with which it extracts memories"""
    for model in models():
        text = model.generate_response(user(checks.COUNT), response_format={"type": "json_object"})
        assert isinstance(json.loads(text), dict)


checks.try_all(
    "mem0ai",
    whole=whole,
    stream="it reads whole answers",
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel="its calls block",
)
