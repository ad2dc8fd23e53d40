"""Custom tools through the edge: a text as the input of a call, also one that keeps to a regex."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from anystreamer.server import create_app
from anystreamer.server._custom_tools import input_of

from ..helpers.call_templates import FAMILIES, NEEDS_RESPONSE_PARSER
from ..helpers.serving import LEFT_GENERATORS, client_of, data_of, official, serving
from ..text.test_response_parser import QWEN, XML
from .test_responses import RESPONSES, checked, types_of
from .test_tool_choice import engine_of
from .test_tools import CHAT, MESSAGES, Saying, edge

pytestmark = [pytest.mark.torch, pytest.mark.slow, NEEDS_RESPONSE_PARSER, LEFT_GENERATORS]

PATCH = '*** Begin Patch\n+a "b" \\ </tool_call> é\n*** End Patch'
TAGGED = "*** Begin Patch\n+a\n*** End Patch"


def json_call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def xml_call(name: str, text: str) -> str:
    tag = f"<parameter=input>\n{text}\n</parameter>"
    return f"<tool_call>\n<function={name}>\n{tag}\n</function>\n</tool_call>"


def grammar(definition: str, syntax: str = "regex") -> dict[str, Any]:
    return {"syntax": syntax, "definition": definition}


def in_chat(name: str = "patch", **more: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": name, **more}}


def tool(name: str = "patch", **more: Any) -> dict[str, Any]:
    return {"type": "custom", "name": name, **more}


FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "wait"}}
CASES = [(QWEN, json_call("patch", input=PATCH), PATCH), (XML, xml_call("patch", TAGGED), TAGGED)]


@pytest.mark.parametrize(("template", "call", "text"), CASES, ids=["json", "tags"])
async def test_a_call_in_a_chat_has_its_text(template: Any, call: str, text: str) -> None:
    says = Saying(f"Well.\n{call}", template)
    body = {"messages": MESSAGES, "tools": [FUNCTION, in_chat(description="Edits.")]}
    async with edge(says) as url, client_of(url) as client:
        whole = (await client.post(CHAT, json=body)).json()
        streamed = await client.post(CHAT, json={**body, "stream": True})
        (choice,) = ChatCompletion.model_validate(whole, strict=True).choices
        assert choice.finish_reason == "tool_calls"
        ours = whole["choices"][0]["message"]["tool_calls"][0]
        assert ours == {
            "id": ours["id"],
            "type": "custom",
            "custom": {"name": "patch", "input": text},
        }
        *chunks, _ = data_of(streamed.text)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        (told,) = [each for delta in deltas for each in delta.get("tool_calls", ())]
        assert told == {**ours, "index": 0, "id": told["id"]}
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        # The model reads of a function, and what it called goes back to it as it called it.
        described = json.loads(says.prompts[-1].split("<tool>")[2].splitlines()[0])
        assert (described["name"], described["description"]) == ("patch", "Edits.")
        assert described["parameters"]["properties"]["input"]["type"] == "string"
        answer = {"role": "assistant", "content": None, "tool_calls": [ours]}
        result = {"role": "tool", "tool_call_id": ours["id"], "content": "done"}
        again = {**body, "messages": [*MESSAGES, answer, result]}
        assert (await client.post(CHAT, json=again)).status_code == 200
        assert f"patch={ours['id']}" in says.prompts[-1]
        sent = says.prompts[-1].split("<call>patch")[1].split("<|im_end|>")[0]
        assert json.loads(sent) == {"input": text}


ITEM = ["output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done"]


@pytest.mark.parametrize(("template", "call", "text"), CASES, ids=["json", "tags"])
async def test_a_call_in_a_response_is_an_item(template: Any, call: str, text: str) -> None:
    """As Codex takes its patches, also from a tool in a namespace."""
    says = Saying(call + call.replace("patch", "git__patch"), template)
    space = {"type": "namespace", "name": "git", "description": "", "tools": [tool()]}
    body = {"input": "hi", "tools": [tool(format={"type": "text"}), space]}
    async with edge(says) as url, client_of(url) as client:
        whole = (await client.post(RESPONSES, json=body)).json()
        Response.model_validate(whole, strict=True)
        streamed = await client.post(RESPONSES, json={**body, "stream": True})
        events = checked(streamed.text)
        order = [*ITEM, "output_item.done"] * 2
        assert types_of(events) == ["created", "in_progress", *order, "completed"]
        fields = [(each.get("namespace"), each["name"], each["input"]) for each in whole["output"]]
        assert fields == [(None, "patch", text), ("git", "patch", text)]
        assert {each["type"] for each in whole["output"]} == {"custom_tool_call"}
        done = [event["item"] for event in events if event["type"].endswith("item.done")]
        assert [each["input"] for each in done] == [text, text]
        assert [e["delta"] for e in events if e["type"].endswith("input.delta")] == [text, text]
        assert [e["input"] for e in events if e["type"].endswith("input.done")] == [text, text]
        assert whole["tools"][0] == {**tool(format={"type": "text"}), "description": None}
        sent = [
            {"type": "custom_tool_call_output", "call_id": each["call_id"], "output": "done"}
            for each in whole["output"]
        ]
        items = [{"role": "user", "content": "hi"}, *whole["output"], *sent]
        again = await client.post(RESPONSES, json={**body, "input": items})
        assert again.status_code == 200, again.text
        for name, item in zip(("patch", "git__patch"), whole["output"], strict=True):
            assert f"<call>{name}{{" in says.prompts[-1]
            assert f"{name}={item['call_id']}" in says.prompts[-1]


REGEX = r'^"?[a-c]{1,3}(\n|\\)[0-9]$'


@pytest.mark.parametrize("name", ["qwen coder", "llama"])  # tags, and JSON
async def test_a_regex_holds_for_all_of_the_input(name: str) -> None:
    pytest.importorskip("llguidance")
    async with engine_of(FAMILIES[name], "none") as engine, serving(create_app(engine)) as url:
        async with official(url) as client:
            chat: Any = client.chat.completions.create
            respond: Any = client.responses.create
            format_in_chat = {"type": "grammar", "grammar": grammar(REGEX)}
            shared: dict[str, Any] = {"model": "anystreamer", "parallel_tool_calls": False}
            answer = await chat(
                messages=MESSAGES,
                tools=[FUNCTION, in_chat(format=format_in_chat)],
                tool_choice=in_chat(),
                max_tokens=200,
                **shared,
            )
            (call,) = answer.choices[0].message.tool_calls
            assert (call.type, call.custom.name) == ("custom", "patch")
            assert re.fullmatch(REGEX, call.custom.input)
            wait = {"type": "function", "name": "wait"}
            tools = [wait, tool(format={"type": "grammar", **grammar(REGEX)})]
            allowed = {"type": "allowed_tools", "mode": "required", "tools": [tool()]}
            for choice in (tool(), allowed):
                response = await respond(
                    input="hi", tools=tools, tool_choice=choice, max_output_tokens=200, **shared
                )
                (item,) = response.output
                assert (item.type, item.name) == ("custom_tool_call", "patch")
                assert re.fullmatch(REGEX, item.input)


GRAMMAR = "tools[0].custom.format.grammar"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"tools": [in_chat("a b")]}, "tools[0].custom.name"),
    (CHAT, {"tools": [in_chat(format={"type": "json"})]}, "tools[0].custom.format.type"),
    (CHAT, {"tools": [in_chat(format={"type": "grammar"})]}, GRAMMAR),
    (
        CHAT,
        {"tools": [in_chat(format={"type": "grammar", "grammar": grammar("start: /a/", "lark")})]},
        f"{GRAMMAR}.syntax",
    ),
    (CHAT, {"tools": [in_chat(strict=True)]}, "tools[0].custom.strict"),
    (CHAT, {"tools": [{"type": "custom", "name": "patch"}]}, "tools[0].custom"),
    (CHAT, {"tools": [in_chat(), in_chat()]}, "tools"),
    (CHAT, {"tools": [in_chat()], "tool_choice": FUNCTION}, "tool_choice"),
    (
        CHAT,
        {"tools": [in_chat()], "tool_choice": {"type": "function", "function": {"name": "patch"}}},
        "tool_choice",
    ),
    (CHAT, {"tools": [FUNCTION], "tool_choice": in_chat("wait")}, "tool_choice"),
    (
        RESPONSES,
        {"tools": [tool(format={"type": "grammar", **grammar("start: /a/", "lark")})]},
        "tools[0].format.syntax",
    ),
    (RESPONSES, {"tools": [tool("a b")]}, "tools[0].name"),
    (RESPONSES, {"tools": [tool(defer_loading=True)]}, "tools[0].defer_loading"),
    (RESPONSES, {"tools": [tool(format={"type": "json"})]}, "tools[0].format.type"),
    (
        RESPONSES,
        {"tools": [tool()], "tool_choice": {"type": "function", "name": "patch"}},
        "tool_choice",
    ),
    (RESPONSES, {"tools": [tool(), tool()]}, "tools"),
    (
        RESPONSES,
        {"input": [{"type": "custom_tool_call", "call_id": "1", "name": "patch"}]},
        "input[0].input",
    ),
]


async def test_what_cannot_be_done_is_refused_by_name() -> None:
    async with edge(Saying("Yes")) as url, client_of(url) as client:
        for path, body, param in REFUSED:
            asked = {"messages": MESSAGES} if path == CHAT else {"input": "hi"}
            response = await client.post(path, json={**asked, **body})
            assert response.status_code == 400, (body, response.text)
            error = response.json()["error"]
            assert error["param"] == param, error
            assert param.rpartition(".")[2].partition("[")[0] in error["message"]


@pytest.mark.parametrize("definition", ["(", "a(?=b)"])
async def test_an_expression_that_is_not_valid_is_refused(definition: str) -> None:
    pytest.importorskip("llguidance")
    format_in_chat = {"type": "grammar", "grammar": grammar(definition)}
    async with edge(Saying("Yes")) as url, client_of(url) as client:
        body = {"messages": MESSAGES, "tools": [in_chat(format=format_in_chat)]}
        response = await client.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a"}', "a"),
        ('{"input": ""}', ""),
        ('{"input": "\\ud800"}', "\ufffd"),
        ('{"input": 1}', '{"input": 1}'),
        ('{"text": "a"}', '{"text": "a"}'),
        ('{"input": "a", "more": 1}', '{"input": "a", "more": 1}'),
        ('["a"]', '["a"]'),
        ("a {", "a {"),
    ],
)
def test_what_is_not_an_input_alone_is_all_of_it(arguments: str, text: str) -> None:
    """Without a grammar nothing keeps the model to the one parameter."""
    assert input_of(arguments) == text
