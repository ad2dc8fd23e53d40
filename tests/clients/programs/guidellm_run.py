"""guidellm, a load generator: its command, and the backend of it that sends the requests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from guidellm.backends import Backend
from guidellm.schemas import GenerationRequest, RequestInfo, UsageMetrics
from guidellm.schemas.backends import OpenAIHTTPBackendArgs

import checks

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def request(text: str, tokens: int | None = None, **columns: Any) -> GenerationRequest:
    """A request of a data set with these columns. Those with tools ask for a call."""
    columns = {name: [value] for name, value in {"text_column": text, **columns}.items()}
    return GenerationRequest(
        columns=columns,
        turn_type="client_tool_call" if "tools_column" in columns else "standard",
        output_metrics=UsageMetrics(text_tokens=tokens),
    )


async def ask(format: str, *requests: GenerationRequest, **settings: Any) -> Any:
    """The response to the last request of a conversation."""
    arguments = OpenAIHTTPBackendArgs(target=checks.URL, request_format=format, **settings)
    backend = Backend.create(arguments)
    await backend.process_startup()
    try:
        await backend.validate()
        history: list[Any] = []
        for each in requests:
            async for found, _ in backend.resolve(each, RequestInfo(), history):
                response = found
            history.append((each, response))
        return response
    finally:
        await backend.process_shutdown()


async def whole() -> None:
    """`stream=false`, each `request_format`: chat completions, completions and responses"""
    for format in (CHAT, RESPONSES):
        assert (await ask(format, request(checks.COUNT), stream=False)).text == checks.COUNTED
    text = (await ask(TEXT, request("one"), stream=False)).text
    assert text == checks.COUNTED.removeprefix("one")


async def stream() -> None:
    """`guidellm run` with synthetic data: a number of tokens, `ignore_eos`, the usage so far"""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = Path(sys.executable).with_name("guidellm")
        options = {
            "backend": f"kind=openai_http,target={checks.URL}",
            "data": "kind=synthetic_text,prompt_tokens=16,output_tokens=24",
            "tokenizer": f"kind=huggingface_auto,model={checks.MODEL_FOLDER}",
            "profile": "kind=concurrent,streams=2",
            "constraint": "kind=max_requests,count=4",
            "output": f"kind=json,path={report}",
        }
        listed = [part for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run([command, "run", "--disable-console", *listed], check=True, cwd=folder)
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"]
    assert [each["output_metrics"]["text_tokens"] for each in requests["successful"]] == [24] * 4
    for format in (TEXT, RESPONSES):
        response = await ask(format, request(checks.COUNT, 24))
        assert response.output_metrics.text_tokens == 24


async def tools() -> None:
    """columns with tools and `tool_choice` "auto", the result sent back"""
    weather = request(
        checks.WEATHER, tools_column=json.dumps([checks.TOOL]), tool_choice_column="auto"
    )
    result = GenerationRequest(
        columns={"tool_response_column": ["Sunny."]}, turn_type="tool_response_injection"
    )
    for format in (CHAT, RESPONSES):
        (call,) = (await ask(format, weather)).tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        assert (await ask(format, weather, result)).text == checks.COUNTED


async def forced_tool() -> None:
    """a column with tools, for which it sends `tool_choice="required"`"""
    count = request(checks.COUNT, 24, tools_column=json.dumps([checks.TOOL]))
    for format in (CHAT, RESPONSES):
        for stream in (True, False):
            (call,) = (await ask(format, count, stream=stream)).tool_calls
            assert call.function.name == "get_weather"


async def cancel() -> None:
    """cancelling a request, with and without a stream, as `max_duration` does"""
    for stream in (True, False):
        endless = ask(CHAT, request(checks.ENDLESS), stream=stream, max_tokens=checks.LIMIT)
        task = asyncio.create_task(endless)
        await asyncio.to_thread(checks.until_running)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(checks.until_stopped)


checks.try_all(
    "guidellm",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured="it asks for no form",
    cancel=cancel,
)
