"""llm, the command and its library, with a model of the file `extra-openai-models.yaml`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import checks

FOLDER = tempfile.mkdtemp()
os.environ["LLM_USER_PATH"] = FOLDER
common = f"""  api_base: {checks.V1}
  api_key_name: openai
"""
Path(FOLDER, "extra-openai-models.yaml").write_text(
    f"""
- model_id: local
  model_name: {checks.MODEL}
  supports_tools: true
  supports_schema: true
{common}
- model_id: local-text
  model_name: {checks.MODEL}
  completion: true
{common}"""
)

import llm  # noqa: E402  (it reads the folder)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def model() -> llm.Model:
    return llm.get_model("local")


def whole() -> None:
    """`llm -m ... --no-stream`, `prompt(stream=False)`, a model with `completion: true`"""
    command = (Path(sys.executable).with_name("llm"), "-m", "local", "--no-stream", checks.COUNT)
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert said.stdout.strip() == checks.COUNTED
    assert model().prompt(checks.COUNT, system="Be short.", stream=False).text() == checks.COUNTED
    text = llm.get_model("local-text").prompt("one", stream=False).text()
    assert text == checks.COUNTED.removeprefix("one")


def stream() -> None:
    """`prompt`, `conversation`"""
    answer = model().prompt(checks.COUNT)
    assert "".join(answer) == checks.COUNTED
    assert answer.usage().output > 9
    talk = model().conversation()
    for _ in range(2):
        assert "".join(talk.prompt(checks.COUNT)) == checks.COUNTED


def tools() -> None:
    """`chain(tools=...)`, which sends the result back, whole and streamed"""
    for streams in (True, False):
        chain = model().chain(checks.WEATHER, tools=[get_weather], stream=streams)
        assert chain.text().endswith(checks.COUNTED)


def structured() -> None:
    """`prompt(schema=...)`"""
    for streams in (True, False):
        answer = model().prompt(checks.COUNT, schema=checks.PARAMETERS, stream=streams)
        assert json.loads(answer.text()) == {"city": ""}


async def cancel() -> None:
    """leaving the loop of an async model, and a garbage collection; cancelling a task"""
    limited = llm.get_async_model("local")

    async def ask(streams: bool) -> None:
        async for _ in limited.prompt(checks.ENDLESS, max_tokens=checks.LIMIT, stream=streams):
            await asyncio.sleep(0)

    for streams in (True, False):
        await checks.cancel_while_running(ask(streams))


checks.try_all(
    "llm",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool="it lets the model choose",
    structured=structured,
    cancel=cancel,
)
