"""llama-index: `OpenAILike`."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

import checks


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


def model(**kwargs: object) -> OpenAILike:
    return OpenAILike(
        model=checks.MODEL,
        api_base=checks.V1,
        api_key=checks.KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        **kwargs,
    )


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


TOOL = FunctionTool.from_defaults(get_weather)


def whole() -> None:
    """`chat`, `complete`"""
    answer = model().chat([ChatMessage(checks.COUNT)])
    assert answer.message.content == checks.COUNTED
    assert model().complete(checks.COUNT).text == checks.COUNTED


def stream() -> None:
    """`stream_chat`, `stream_complete`"""
    deltas = [each.delta or "" for each in model().stream_chat([ChatMessage(checks.COUNT)])]
    assert "".join(deltas) == checks.COUNTED
    *_, last = model().stream_complete(checks.COUNT)
    assert last.text == checks.COUNTED


def tools() -> None:
    """`predict_and_call`; `chat_with_tools`, the result sent back"""
    assert "Sunny in Paris." in str(model().predict_and_call([TOOL], checks.WEATHER))
    history = [ChatMessage(checks.WEATHER)]
    answer = model().chat_with_tools([TOOL], chat_history=history)
    (call,) = model().get_tool_calls_from_response(answer)
    assert call.tool_kwargs == {"city": "Paris"}
    history += [
        answer.message,
        ChatMessage("Sunny.", role="tool", additional_kwargs={"tool_call_id": call.tool_id}),
    ]
    answer = model().chat_with_tools([TOOL], chat_history=history)
    assert answer.message.content == checks.COUNTED


def forced_tool() -> None:
    """`chat_with_tools(tool_required=True)`, and with the tool's name"""
    for options in ({"tool_required": True}, {"tool_choice": "get_weather"}):
        answer = model().chat_with_tools([TOOL], user_msg=checks.COUNT, **options)
        (call,) = model().get_tool_calls_from_response(answer)
        assert call.tool_name == "get_weather"


def structured() -> None:
    """`as_structured_llm`, with and without `should_use_structured_outputs`"""
    assert get_function_tool(Weather).metadata.name == "Weather"
    for options in ({}, {"should_use_structured_outputs": True}):
        answer = model(**options).as_structured_llm(Weather).chat([ChatMessage(checks.COUNT)])
        assert isinstance(answer.raw, Weather)


async def cancel() -> None:
    """cancelling a task in `achat`; a stream that is left stays open until the event loop ends"""
    endless, asked = model(max_tokens=checks.LIMIT), [ChatMessage(checks.ENDLESS)]
    await checks.cancel_while_running(endless.achat(asked))


checks.try_all(
    "llama-index-llms-openai-like",
    whole=whole,
    stream=stream,
    tools=tools,
    forced_tool=forced_tool,
    structured=structured,
    cancel=cancel,
)
