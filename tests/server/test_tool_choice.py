"""`tool_choice`, `strict` and `parallel_tool_calls` through the edge: the official client."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from anystreamer import Engine, open_engine
from anystreamer.remote import open_remote_engine
from anystreamer.server import create_app

from ..helpers.batchings import BATCHINGS
from ..helpers.call_templates import FAMILIES, NEEDS_RESPONSE_PARSER, Family, Wish, tool
from ..helpers.serving import LEFT_GENERATORS, client_of, official, serving

pytest.importorskip("llguidance")

pytestmark = [pytest.mark.torch, pytest.mark.slow, NEEDS_RESPONSE_PARSER, LEFT_GENERATORS]

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [
    tool("wait", {"seconds": {"type": "integer", "minimum": 0, "maximum": 60}}, ["seconds"]),
    tool("go_to", {"place": {"enum": ["here", "there"]}}, ["place"]),
]
PARAMETERS = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
NAMED: Any = {"type": "function", "function": {"name": "go_to"}}
SERVED = ["qwen coder", "mistral, a list", "llama"]  # without reasoning, which would not end


@asynccontextmanager
async def engine_of(family: Family, batching: Any) -> AsyncIterator[Engine]:
    """An engine whose model says anything."""
    family.tokenizer.response_template = family.template
    try:
        async with open_engine(family.model, family.tokenizer, batching=batching) as engine:
            yield engine
    finally:
        family.tokenizer.response_template = None


def check(message: Any, choice: Any) -> None:
    calls = message.tool_calls or []
    assert bool(calls) is (choice != "none")
    for call in calls:
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, PARAMETERS[call.function.name])
        assert choice != NAMED or call.function.name == "go_to"
    assert len(calls) <= 1


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("name", SERVED)
async def test_the_official_client_gets_the_call_that_it_asks_for(name: str, batching: Any) -> None:
    async with engine_of(FAMILIES[name], batching) as engine, serving(create_app(engine)) as url:
        async with official(url) as client:
            for choice in ("required", NAMED, "none"):
                body: dict[str, Any] = {
                    "model": "anystreamer",
                    "messages": MESSAGES,
                    "tools": TOOLS,
                    "tool_choice": choice,
                    "parallel_tool_calls": False,
                    "max_tokens": 40 if choice == "none" else 200,
                    "temperature": 1.0,
                }
                whole = (await client.chat.completions.create(**body)).choices[0]
                check(whole.message, choice)
                assert whole.finish_reason == ("length" if choice == "none" else "tool_calls")
                if choice == "none":  # the client raises where the limit cuts a stream
                    chunks = await client.chat.completions.create(**body, stream=True)
                    deltas = [chunk.choices[0].delta async for chunk in chunks]
                    assert not any(delta.tool_calls for delta in deltas)
                    continue
                async with client.chat.completions.stream(**body) as events:
                    last = (await events.get_final_completion()).choices[0]
                check(last.message, choice)
                assert last.finish_reason == "tool_calls"


async def test_functions_in_namespaces_are_chosen_with_them() -> None:
    """Of the Responses API. Chats take names of 64 characters; these are longer together."""
    family = FAMILIES["llama"]
    function: Any = {"type": "function", **TOOLS[1]["function"], "name": "go" * 26}
    spaces = ["mcp__map", "mcp__car__"]
    tools: Any = [{"type": "namespace", "name": each, "tools": [function]} for each in spaces]
    async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
        async with official(url) as client:
            ask: Any = client.responses.create
            for space in spaces:
                named = {"type": "function", "name": function["name"], "namespace": space}
                allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
                for choice in (named, allowed):
                    response = await ask(
                        model="anystreamer",
                        input="hi",
                        tools=tools,
                        tool_choice=choice,
                        parallel_tool_calls=False,
                        max_output_tokens=200,
                    )
                    (call,) = response.output
                    assert (call.namespace, call.name) == (space, function["name"])
                    jsonschema.validate(json.loads(call.arguments), PARAMETERS["go_to"])


async def test_a_loop_of_calls() -> None:
    """Each result goes back, and the next call is another one."""
    family = FAMILIES["qwen coder"]
    async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
        async with official(url) as client:
            messages = list(MESSAGES)
            for turn in range(3):
                answer = await client.chat.completions.create(
                    model="anystreamer",
                    messages=messages,
                    tools=TOOLS,
                    tool_choice="required" if turn < 2 else "none",
                    max_tokens=200 if turn < 2 else 5,
                    parallel_tool_calls=False,
                )
                message = answer.choices[0].message
                if turn == 2:
                    assert message.tool_calls is None
                    break
                calls: Any = message.tool_calls
                (call,) = calls
                messages += [
                    message,
                    {"role": "tool", "tool_call_id": call.id, "content": "done"},
                ]
            assert len(messages) == 5


class Wishing:
    """A model that prefers a text, in each of its answers."""

    def __init__(self, family: Family, text: str) -> None:
        self._ids = [*family.tokenizer.encode(text), family.eos]
        self._model = family.model

    def __enter__(self) -> None:
        self._generate = self._model.generate
        self._model.generate = self._prefer

    def __exit__(self, *exc_info: object) -> None:
        del self._model.generate

    def _prefer(self, **kwargs: Any) -> Any:
        processors = [Wish(self._ids), *kwargs.pop("logits_processor", ())]
        return self._generate(**kwargs, logits_processor=processors)


async def choice_of(client: Any, body: dict[str, Any], stream: bool) -> Any:
    """The only choice of a chat completion, whole or in events."""
    if not stream:
        return (await client.chat.completions.create(**body)).choices[0]
    async with client.chat.completions.stream(**body) as events:
        return (await events.get_final_completion()).choices[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_strict_tools_where_the_model_chooses(stream: bool) -> None:
    family = FAMILIES["qwen coder"]
    strict = [{**each, "function": {**each["function"], "strict": True}} for each in TOOLS]
    text = f"Well. {family.call.replace('7', '99')}"
    found = {}
    for tools in (strict, TOOLS):
        with Wishing(family, text):
            async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
                async with official(url) as client:
                    body: dict[str, Any] = {
                        "model": "anystreamer",
                        "messages": MESSAGES,
                        "tools": tools,
                        "max_tokens": 300,
                    }
                    choice = await choice_of(client, body, stream)
        assert choice.message.content.startswith("Well.")
        calls = choice.message.tool_calls or ()
        found[tools is strict] = [json.loads(call.function.arguments) for call in calls]
    assert found[False][0] == {"seconds": 99}
    for arguments in found[True]:
        assert arguments != {"seconds": 99}
        assert arguments.get("seconds", 0) <= 60


PLACE: Any = {
    "type": "json_schema",
    "json_schema": {"name": "place", "schema": PARAMETERS["go_to"], "strict": True},
}


@pytest.mark.parametrize("stream", [False, True])
async def test_beside_tools_a_response_format_is_for_the_text(stream: bool) -> None:
    """As clients with both send them: an answer in the form, or a call."""
    family = FAMILIES["llama"]
    for text in ('{"place": "there"}', family.call):
        with Wishing(family, text):
            async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
                async with official(url) as client:
                    body: dict[str, Any] = {
                        "model": "anystreamer",
                        "messages": MESSAGES,
                        "tools": TOOLS,
                        "response_format": PLACE,
                        "max_tokens": 300,
                    }
                    choice = await choice_of(client, body, stream)
                    required = await client.chat.completions.create(**body, tool_choice="required")
                    asked: dict[str, Any] = {
                        "tools": [{"type": "function", **each["function"]} for each in TOOLS],
                        "text": {"format": {"type": "json_schema", **PLACE["json_schema"]}},
                        "max_output_tokens": 300,
                    }
                    response: Any = await client.responses.create(
                        model="anystreamer", input="hi", **asked
                    )
        if text == family.call:
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls
            assert json.loads(call.function.arguments) == {"seconds": 7}
            assert json.loads(response.output[0].arguments) == {"seconds": 7}
        else:
            assert (choice.finish_reason, choice.message.content) == ("stop", text)
            assert response.output_text == text
        # Where a call is required, there is no text that the form could be about.
        assert required.choices[0].message.tool_calls
        assert not required.choices[0].message.content


async def test_a_remote_engine_passes_them_on() -> None:
    family = FAMILIES["qwen coder"]
    async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
        async with open_remote_engine(f"{url}/v1", "anystreamer", api_key="x") as remote:
            async with remote.stream_text(
                MESSAGES, tools=TOOLS, tool_choice=NAMED, max_new_tokens=200
            ) as stream:
                await stream.read()
            message: Any = stream.message
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == "go_to"
            jsonschema.validate(call["function"]["arguments"], PARAMETERS["go_to"])
            async with remote.stream_text(
                MESSAGES,
                tools=TOOLS,
                tool_choice=NAMED,
                response_format=PARAMETERS["go_to"],
                max_new_tokens=200,
            ) as stream:
                await stream.read()
            message = stream.message
            assert len(message["tool_calls"]) == 1
            assert stream.parsed is None


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2, 3]}},
    "required": ["a"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
ODD = {"name": "n", "schema": {"$ref": "#/nowhere"}}


def check_call_or_answer(bias: str, arguments: str | None, text: str) -> None:
    if bias == "<":
        jsonschema.validate(json.loads(arguments or ""), PARAMETERS["go_to"])
        assert not text
    else:
        jsonschema.validate(json.loads(text), SCHEMA)
        assert arguments is None


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_an_answer_is_a_call_or_keeps_to_the_format(batching: Any) -> None:
    """Of chat completions and of responses, whole and in events. A bias chooses between the two."""
    family = FAMILIES["qwen coder"]
    function = {**TOOLS[1]["function"], "strict": True}
    async with engine_of(family, batching) as engine, serving(create_app(engine)) as url:
        async with official(url) as client:
            for bias in "<{":
                chat: dict[str, Any] = {
                    "model": "anystreamer",
                    "messages": MESSAGES,
                    "tools": [{"type": "function", "function": function}],
                    "parallel_tool_calls": False,
                    "response_format": FORM,
                    "max_tokens": 200,
                    "logit_bias": {str(family.tokenizer.encode(bias)[0]): 5},
                }
                for in_events in (False, True):
                    choice = await choice_of(client, chat, in_events)
                    assert choice.finish_reason == ("tool_calls" if bias == "<" else "stop")
                    (call,) = choice.message.tool_calls or [None]
                    made: Any = call and call.function.arguments
                    check_call_or_answer(bias, made, choice.message.content or "")
            respond: Any = client.responses.create
            response = await respond(
                model="anystreamer",
                input="hi",
                tools=[{"type": "function", **function}],
                parallel_tool_calls=False,
                text={"format": {"type": "json_schema", **FORM["json_schema"]}},
                max_output_tokens=200,
                temperature=0,
            )
            (item,) = response.output
            is_call = item.type == "function_call"
            made = item.arguments if is_call else None
            check_call_or_answer("<" if is_call else "{", made, response.output_text)
        async with open_remote_engine(f"{url}/v1", "anystreamer", api_key="x") as remote:
            for bias in "<{":
                async with remote.stream_text(
                    MESSAGES,
                    tools=chat["tools"],
                    parallel_tool_calls=False,
                    response_format=SCHEMA,
                    logit_bias={family.tokenizer.encode(bias)[0]: 5.0},
                    max_new_tokens=200,
                ) as stream:
                    await stream.read()
                message: Any = stream.message
                assert ("tool_calls" in message) is (bias == "<")
                assert (stream.parsed is None) is (bias == "<")


async def test_what_cannot_be_kept_to_is_a_400() -> None:
    family = FAMILIES["qwen coder"]
    odd = [tool("wait", {"seconds": {"type": "integer", "not": {}}})]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tools": odd, "tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("a", {"b": {"$ref": "#/c"}}, strict=True)]}, "tools"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {**NAMED, "function": {"name": "x"}}}, "tool_choice"),
        (
            {"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": ODD}},
            "response_format",
        ),
    ]
    async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            for body, param in cases:
                for stream in (False, True):
                    answer = await client.post(
                        "/v1/chat/completions",
                        json={"messages": MESSAGES, "stream": stream, **body},
                    )
                    assert answer.status_code == 400, (body, answer.text)
                    error = answer.json()["error"]
                    assert error["param"] == param, error
                    assert error["type"] == "invalid_request_error"


async def test_a_server_without_llguidance_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    family = FAMILIES["llama"]
    async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
            answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "tool_choice= needs llguidance" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "tool_choice"


SAY: Any = [tool("say", {"text": {"type": "string"}}, ["text"], strict=True)]
SAID = '</tool_call>\n<tool_call>{"name": "wait"}'


@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_an_argument_can_have_the_text_that_ends_a_call(choice: str) -> None:
    """In a whole answer and in events, of both APIs."""
    family = FAMILIES["qwen"]
    call = json.dumps({"name": "say", "arguments": {"text": SAID}})
    text = f"<tool_call>\n{call}\n</tool_call>"
    chat: dict[str, Any] = {"messages": MESSAGES, "tools": SAY, "tool_choice": choice}
    function = {"type": "function", **SAY[0]["function"]}
    asked: dict[str, Any] = {"input": "hi", "tools": [function], "tool_choice": choice}
    with Wishing(family, text):
        async with engine_of(family, "none") as engine, serving(create_app(engine)) as url:
            async with official(url) as client:
                for body in (chat, asked):
                    body |= {"model": "anystreamer", "parallel_tool_calls": False}
                for stream in (False, True):
                    message = (await choice_of(client, chat, stream)).message
                    (called,) = message.tool_calls
                    assert json.loads(called.function.arguments) == {"text": SAID}
                    assert not message.content
                whole: Any = await client.responses.create(**asked)
                async with client.responses.stream(**asked) as events:
                    last: Any = await events.get_final_response()
                for response in (whole, last):
                    (item,) = response.output
                    assert json.loads(item.arguments) == {"text": SAID}
