"""`/v1/responses`: OpenAI's objects and events, its client, refusals, and who leaves. No torch."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from anyio import create_task_group
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from anystreamer import Timeouts, open_engine
from anystreamer.server import create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, edge, error_of, events_of, official, serving

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    LEFT_GENERATORS,
]

RESPONSES = "/v1/responses"
ENDLESS = ["word "] * 20_000
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PROMPT = "user: Hi!\nassistant: "


def checked(body: str) -> list[dict[str, Any]]:
    """The events of a body: each is valid, has its name, and its number in the sequence."""
    events: list[dict[str, Any]] = []
    for name, data in events_of("".join(f"{each}\n\n" for each in body.split("\n\n")[:-1])):
        event = json.loads(data)
        assert event["type"] == name
        assert event["sequence_number"] == len(events)
        EVENT.validate_python(event, strict=True)
        events.append(event)
    return events


def types_of(events: list[dict[str, Any]]) -> list[str]:
    """Their types, without repetitions."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [each for i, each in enumerate(types) if i == 0 or each != types[i - 1]]


ORDER = [
    "created",
    "in_progress",
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
    "completed",
]


@pytest.mark.parametrize("server", SERVERS)
async def test_events_are_openai_s_to_the_letter(server: str) -> None:
    gate = Gate()
    model = ScriptedModel(["one ", gate, "\u2028\r\ntwo\n\n", '"three"'])
    body = {"model": "counter", "input": "Hi!", "stream": True}
    async with edge(model, server=server, model_name="counter") as (client, _):
        async with client.stream("POST", RESPONSES, json=body) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            text = ""
            async for part in response.aiter_text():
                text += part
                if "one" in text:
                    gate.open()
    events = checked(text)
    assert types_of(events) == ORDER
    said = 'one \u2028\r\ntwo\n\n"three"'
    deltas = [each for each in events if each["type"] == "response.output_text.delta"]
    assert "".join(each["delta"] for each in deltas) == said
    assert all(each["logprobs"] == [] for each in deltas)
    created, added, part_added = events[0]["response"], events[2]["item"], events[3]["part"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert (added["status"], added["content"], part_added["text"]) == ("in_progress", [], "")
    done, part_done, item_done, completed = events[-4:]
    response = completed["response"]
    text_part: Any = {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
    item: dict[str, Any] = {
        "id": added["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [text_part],
    }
    assert (done["text"], part_done["part"], item_done["item"]) == (said, text_part, item)
    assert response["output"] == [item]
    assert all(each.get("item_id", added["id"]) == added["id"] for each in events)
    assert {each["response"]["id"] for each in events if "response" in each} == {response["id"]}
    assert (response["status"], response["model"]) == ("completed", "counter")
    assert response["usage"] == {
        "input_tokens": len(PROMPT),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(PROMPT) + 4,
    }


async def test_a_response_in_one_piece() -> None:
    body = {
        "input": "Hi!",
        "instructions": "Be brief.",
        "metadata": {"of": "me"},
        "temperature": 0.5,
        "max_output_tokens": 7,
        "store": True,
        "user": "me",
        "truncation": "auto",
        "service_tier": "flex",
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low"},
    }
    async with edge(ScriptedModel(["one ", "two"]), model_name="counter") as (client, _):
        answer = (await client.post(RESPONSES, json=body)).json()
    Response.model_validate(answer, strict=True)
    assert answer["object"] == "response"
    assert answer["id"].startswith("resp_")
    (item,) = answer["output"]
    assert item["content"][0]["text"] == "one two"
    assert answer["created_at"] <= answer["completed_at"]
    expected: dict[str, Any] = {
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "metadata": {"of": "me"},
        "temperature": 0.5,
        "top_p": None,
        "max_output_tokens": 7,
        "store": False,  # nothing is
        "user": "me",
        "truncation": "auto",
        "service_tier": "default",
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "background": False,
    }
    assert {name: answer[name] for name in expected} == expected


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_is_incomplete(stream: bool) -> None:
    body = {"input": "Hi!", "stream": stream, "max_output_tokens": 2}
    async with edge(ScriptedModel(["a", "b", "c"])) as (client, _):
        response = await client.post(RESPONSES, json=body)
    if stream:
        events = checked(response.text)
        assert types_of(events) == [*ORDER[:-1], "incomplete"]
        answer = events[-1]["response"]
    else:
        answer = response.json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = answer["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "ab")
    assert (answer["usage"]["output_tokens"], answer["completed_at"]) == (2, None)


async def test_no_text_at_all_is_an_answer_too() -> None:
    async with edge(ScriptedModel([])) as (client, _):
        response = await client.post(RESPONSES, json={"input": "Hi!", "stream": True})
        answer = (await client.post(RESPONSES, json={"input": "Hi!"})).json()
    events = checked(response.text)
    assert types_of(events) == [each for each in ORDER if each != "output_text.delta"]
    for each in (events[-1]["response"], answer):
        (item,) = each["output"]
        assert item["content"][0]["text"] == ""


@pytest.mark.parametrize("server", SERVERS)
async def test_the_official_client(server: str) -> None:
    model = ScriptedModel(["one ", "two ", "three"])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine), server) as url, official(url) as client:
            ask = client.responses
            whole = await ask.create(model="anystreamer", input="Hi!")
            assert (whole.output_text, whole.status) == ("one two three", "completed")
            assert whole.usage
            assert whole.usage.output_tokens == 4
            text = ""
            async for event in await ask.create(model="anystreamer", input="Hi!", stream=True):
                if event.type == "response.output_text.delta":
                    text += event.delta
            assert text == "one two three"
            async with ask.stream(model="anystreamer", input="Hi!") as events:
                snapshots = [
                    each.snapshot
                    async for each in events
                    if each.type == "response.output_text.delta"
                ]
                final = await events.get_final_response()
            assert (snapshots[-1], final.output_text) == ("one two three", "one two three")
            # All of an answer goes back.
            conversation: Any = [{"role": "user", "content": "Hi!"}, *final.output]
            conversation.append({"role": "user", "content": "More!"})
            again = await ask.create(model="anystreamer", input=conversation)
            assert again.output_text == "one two three"
    told = "user: Hi!\nassistant: one two three\nuser: More!\nassistant: "
    assert model.calls[-1]["input_ids"] == [[*map(ord, told)]]


async def test_the_engine_is_asked_for_what_the_client_asks_for() -> None:
    model = ScriptedModel(["a"])
    parts = [{"type": "input_text", "text": "Hi"}, {"type": "input_text", "text": "!"}]
    asked: list[dict[str, Any]] = [
        {},
        {"temperature": 0, "top_p": 0.5, "max_output_tokens": 7},
        {"temperature": 0.5, "tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
        {
            "top_p": 1,
            "top_k": 5,
            "background": False,
            "previous_response_id": None,
            "include": None,
            "reasoning": {"context": "auto", "mode": "standard"},
        },
        {"input": [{"role": "developer", "content": parts}], "instructions": "So:"},
    ]
    async with edge(model, default_max_tokens=100, max_tokens_limit=50) as (client, _):
        for each in asked:
            response = await client.post(RESPONSES, json={"input": "Hi!", **each})
            assert response.status_code == 200, response.text
    first, greedy, warm, nucleus, parted = model.calls
    assert first.pop("input_ids") == [[*map(ord, PROMPT)]]
    assert first == {"max_new_tokens": 50}
    assert (greedy["do_sample"], greedy["max_new_tokens"]) == (False, 7)
    assert (warm["do_sample"], warm["temperature"]) == (True, 0.5)
    assert (nucleus["temperature"], nucleus["top_p"], nucleus["top_k"]) == (1.0, 1.0, 5)
    assert parted["input_ids"] == [[*map(ord, "system: So:\nsystem: Hi!\nassistant: ")]]


# -- refusals


def inputs(*items: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "Hi!"}, *items]}


def part(**part: Any) -> dict[str, Any]:
    return inputs({"role": "user", "content": [{"type": "input_text", "text": ""}, part]})


WAIT = {"type": "function", "name": "wait", "parameters": {}, "strict": False}
CALLED = {"type": "function_call", "call_id": "1", "name": "wait", "arguments": "{}"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True}, "background"),
    ({"context_management": []}, "context_management"),
    ({"other": 1}, "other"),
    ({"n": 2}, "n"),
    ({"max_tokens": 1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 1}, "input"),
    ({"input": [1]}, "input[0]"),
    ({"instructions": 1}, "instructions"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 51}, "max_output_tokens"),
    ({"max_output_tokens": "1"}, "max_output_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": True}, "top_p"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include"),
    ({"seed": 1}, "seed"),  # a scripted model draws by none
    ({"stop": ""}, "stop"),
    ({"include": ["everything"]}, "include[0]"),
    ({"include": ["message.output_text.logprobs"]}, "logprobs"),  # it has none
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"truncation": "some"}, "truncation"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"other": 1}}, "reasoning.other"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
    ({"tools": [WAIT]}, "tools"),  # its template has none
    ({"tools": [{**WAIT, "name": "wa it"}]}, "tools[0].name"),
    ({"tools": [{**WAIT, "parameters": []}]}, "tools[0].parameters"),
    ({"tools": [{**WAIT, "other": 1}]}, "tools[0].other"),
    ({"tools": [{"type": "function", "function": {"name": "wait"}}]}, "tools[0].name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "wait"}}, "tool_choice"),
    ({"tools": [WAIT], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    (
        {
            "tools": [WAIT],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "other"}],
            },
        },
        "tool_choice",
    ),
    (inputs({"role": "ghost", "content": ""}), "input[1].role"),
    (inputs({"role": "user"}), "input[1].content"),
    (inputs({"role": "user", "content": "", "name": "me"}), "input[1].name"),
    (inputs({"type": "item_reference", "id": "msg_1"}), "input[1]"),
    (inputs({"type": "web_search_call", "id": "ws_1"}), "input[1].type"),
    (inputs({"type": 1}), "input[1].type"),
    (inputs({**CALLED, "arguments": "{"}), "input[1].arguments"),
    (inputs(CALLED, {**CALLED, "arguments": "[]"}), "input[2].arguments"),
    (inputs({**CALLED, "async": True}), "input[1].async"),
    (inputs({**CALLED, "arguments": {}}), "input[1].arguments"),
    (inputs({**CALLED, "call_id": None}), "input[1].call_id"),
    (inputs({"type": "function_call_output", "output": ""}), "input[1].call_id"),
    (inputs({"type": "function_call_output", "call_id": "1"}), "input[1].output"),
    (inputs({"type": "reasoning", "content": ["a"]}), "input[1].content[0]"),
    (part(type="input_file", file_id="file_1"), "input[1].content[1].type"),
    (part(type="input_image", file_id="file_1"), "input[1].content[1]"),
    (part(type="input_image", image_url="data:image/png;base64,AA=="), "input"),  # it sees none
    (
        inputs(
            CALLED,
            {
                "type": "function_call_output",
                "call_id": "call_1",
                "output": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}],
            },
        ),
        "input",
    ),
    (part(type="input_audio", input_audio={"data": "AA==", "format": "wav"}), "input"),
    (part(type="text", text=""), "input[1].content[1].type"),
    (part(type="input_text", text=1), "input[1].content[1].text"),
]


async def test_what_is_not_supported_is_refused_by_name() -> None:
    model = ScriptedModel(["a"])
    async with edge(model, max_tokens_limit=50) as (client, engine):
        for body, param in REFUSED:
            response = await client.post(RESPONSES, json={"input": "Hi!", **body})
            assert response.status_code == 400, (body, response.text)
            error = error_of(response)
            assert error["type"] == "invalid_request_error"
            assert error["param"].startswith(param), (body, error)
            # Names of a chat request are none of this API.
            names = {"messages", "max_completion", "response_format", "function."} - set(body)
            assert not any(name in error["message"] for name in names)
        assert (await client.post(RESPONSES, json={})).json()["error"]["param"] == "input"
        body = {"input": "Hi!", "model": "other"}
        assert (await client.post(RESPONSES, json=body)).status_code == 404
        assert (await client.get(RESPONSES)).status_code == 405
        assert (await client.get(f"{RESPONSES}/resp_1")).status_code == 404
        assert engine.statistics().running == 0
    assert not model.calls


async def test_a_field_with_a_fixed_value_says_what_to_do() -> None:
    picture = part(type="input_image", image_url="data:image/png;base64,AA==", file_id="file_1")
    async with edge(ScriptedModel(["a"])) as (client, _):
        for body, param, instead in (
            (picture, "input[1].content[1].file_id", "leave it out"),
            (
                {"stream": True, "stream_options": {"include_obfuscation": True}},
                "stream_options.include_obfuscation",
                "leave it out, or send false",
            ),
        ):
            error = error_of(await client.post(RESPONSES, json={"input": "Hi!", **body}))
            assert (error["param"], error["code"]) == (param, "unsupported_value")
            assert error["message"] == f"{param} is not supported: {instead}"


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_an_input_is_400(stream: bool) -> None:
    async with edge(ScriptedModel(["a"] * 50), context_length=40) as (client, _):
        body = {"input": "x" * 40, "stream": stream}
        error = error_of(await client.post(RESPONSES, json=body))
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
        body = {"input": "Hi!", "stream": stream, "max_output_tokens": 30}
        error = error_of(await client.post(RESPONSES, json=body))
        assert (error["code"], error["param"]) == ("context_length_exceeded", "max_output_tokens")
        assert "max_output_tokens asks for 30" in error["message"]


async def test_the_guards_of_the_other_routes_hold() -> None:
    kwargs: dict[str, Any] = {
        "api_key": "key",
        "allow_origins": ["https://good.example"],
        "allowed_hosts": ["127.0.0.1"],
        "max_body_bytes": 1000,
    }
    key = {"authorization": "Bearer key"}
    body = {"input": "Hi!"}
    async with edge(ScriptedModel(["a"]), **kwargs) as (client, _):
        assert (await client.post(RESPONSES, json=body)).status_code == 401
        good = await client.post(
            RESPONSES, json=body, headers=key | {"origin": "https://good.example"}
        )
        assert good.status_code == 200
        assert good.headers["access-control-allow-origin"] == "https://good.example"
        foreign = key | {"host": "evil.example"}
        assert (await client.post(RESPONSES, json=body, headers=foreign)).status_code == 400
        large = {"input": "x" * 1000}
        assert (await client.post(RESPONSES, json=large, headers=key)).status_code == 413
        form = key | {"content-type": "text/plain"}
        assert (await client.post(RESPONSES, content=b"{}", headers=form)).status_code == 415


# -- errors of the model


@pytest.mark.parametrize("server", SERVERS)
async def test_an_error_in_the_stream_is_two_events_at_the_end(server: str) -> None:
    model = ScriptedModel(["one ", OSError("a secret")])
    async with edge(model, server=server) as (client, _):
        response = await client.post(RESPONSES, json={"input": "Hi!", "stream": True})
        assert response.status_code == 200
        whole = await client.post(RESPONSES, json={"input": "Hi!"})
    *events, error, failed = checked(response.text)
    assert types_of(events) == ORDER[:5]
    assert (error["type"], error["message"]) == ("error", "the model failed")
    assert failed["type"] == "response.failed"
    answer = failed["response"]
    assert answer["status"] == "failed"
    assert answer["error"] == {"code": "server_error", "message": "the model failed"}
    (item,) = answer["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "one ")
    assert "secret" not in response.text
    assert whole.status_code == 500
    assert error_of(whole)["message"] == "the model failed"


@pytest.mark.parametrize("server", SERVERS)
async def test_an_error_before_the_first_event_has_its_status(server: str) -> None:
    body = {"input": "Hi!", "stream": True}
    async with edge(ScriptedModel([OSError("a secret")]), server=server) as (client, _):
        response = await client.post(RESPONSES, json=body)
        assert response.status_code == 500
        assert error_of(response)["message"] == "the model failed"
    gate = Gate()
    async with edge(ScriptedModel([gate, "a"]), server=server, max_waiting=0) as (client, _):
        async with create_task_group() as tasks:
            tasks.start_soon(partial(client.post, RESPONSES, json={"input": "Hi!"}))
            await gate.reached()
            response = await client.post(RESPONSES, json=body)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert error_of(response)["code"] == "engine_busy"
            gate.open()


async def test_an_error_after_a_comment_is_events_that_begin_with_the_first() -> None:
    gate = Gate()
    async with edge(ScriptedModel([gate, OSError("a secret")]), keep_alive=0.01) as (client, _):
        text = ""
        body = {"input": "Hi!", "stream": True}
        async with client.stream("POST", RESPONSES, json=body) as response:
            assert response.status_code == 200
            async for part in response.aiter_text():
                text += part
                gate.open()
    assert text.startswith(": keep-alive\n\n")
    events = checked(text)
    assert types_of(events) == ["created", "in_progress", "error", "failed"]
    assert events[-1]["response"]["output"] == []


async def test_a_timeout_is_said() -> None:
    timeout = Timeouts(between_tokens=0.05)
    async with edge(ScriptedModel(["one ", 0.2, "two "]), timeout=timeout) as (client, _):
        response = await client.post(RESPONSES, json={"input": "Hi!"})
        assert response.status_code == 504
        response = await client.post(RESPONSES, json={"input": "Hi!", "stream": True})
    *_, error, failed = checked(response.text)
    assert error["code"] == "between_tokens"
    assert failed["response"]["error"]["code"] == "server_error"


# -- who leaves


@pytest.mark.parametrize("server", SERVERS)
async def test_who_leaves_a_stream_stops_the_model(server: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with edge(model, server=server) as (client, engine):
        body = {"input": "Hi!", "stream": True, "max_output_tokens": 10**6}
        async with client.stream("POST", RESPONSES, json=body) as response:
            await anext(response.aiter_text())
            assert model.is_generating
        await until(lambda: not (model.is_generating or engine.statistics().running))
    assert model.steps < len(ENDLESS)


@pytest.mark.parametrize("server", SERVERS)
async def test_who_does_not_wait_for_the_whole_stops_the_model(server: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with edge(model, server=server) as (client, engine):
        async with create_task_group() as tasks:
            body = {"input": "Hi!", "max_output_tokens": 10**6}
            tasks.start_soon(partial(client.post, RESPONSES, json=body))
            await until(lambda: model.steps > 3)
            tasks.cancel_scope.cancel()
        await until(lambda: not (model.is_generating or engine.statistics().running))
        metrics = (await client.get("/metrics")).text
    assert model.steps < len(ENDLESS)
    total = "anystreamer_http_requests_total"
    assert f'{total}{{endpoint="responses",outcome="disconnected"}} 1.0' in metrics


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_line_is_never_run(server: str, stream: bool) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with edge(model, server=server) as (client, engine), create_task_group() as tasks:
        tasks.start_soon(partial(client.post, RESPONSES, json={"input": "first"}))
        await gate.reached()
        async with create_task_group() as leaving:
            body = {"input": "second", "stream": stream}
            leaving.start_soon(partial(client.post, RESPONSES, json=body))
            await until(lambda: engine.statistics().waiting == 1)
            leaving.cancel_scope.cancel()
        await until(lambda: engine.statistics().waiting == 0)
        gate.open()
    assert len(model.calls) == 1


async def test_the_official_client_that_breaks_off_and_one_that_gets_an_error() -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine)) as url, official(url) as client:
            ask: Any = partial(client.responses.create, model="anystreamer", input="Hi!")
            stream = await ask(stream=True)
            async for _ in stream:
                break
            await stream.close()
            await until(lambda: not (model.is_generating or engine.statistics().running))
            with pytest.raises(openai.BadRequestError, match="previous_response_id"):
                await ask(previous_response_id="resp_1")
    failing = ScriptedModel(["a", OSError("a secret")])
    async with open_engine(failing, failing.tokenizer) as engine:
        async with serving(create_app(engine)) as url, official(url) as client:
            async with client.responses.stream(model="anystreamer", input="Hi!") as events:
                types = [event.type async for event in events]
            assert types[-2:] == ["error", "response.failed"]


# -- anything may be sent


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
TEXTS = st.text(max_size=5)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "input_image", "refusal"])},
        optional={"text": TEXTS, "refusal": TEXTS, "image_url": TEXTS},
    ),
    max_size=3,
)
TYPES = ["message", "reasoning", "function_call", "function_call_output", "item_reference"]
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(TYPES),
        "role": st.sampled_from(["system", "user", "assistant", "developer"]),
        "content": TEXTS | PARTS | JUNK,
        "id": TEXTS,
        "call_id": TEXTS,
        "name": TEXTS,
        "arguments": JUNK.map(json.dumps),
        "output": TEXTS | PARTS,
        "summary": JUNK,
    },
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS})
VALUES: dict[str, Any] = {
    "input": st.text() | st.lists(MESSAGE | ITEM, max_size=4),
    "instructions": st.text(),
    "model": st.sampled_from(["anystreamer", "other"]),
    "stream": st.booleans(),
    "max_output_tokens": st.integers(-1, 2**31),
    "temperature": st.floats(-0.1, 2.1),
    "tools": st.lists(st.just(WAIT) | JUNK, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "text": st.fixed_dictionaries({"format": st.fixed_dictionaries({"type": TEXTS})}),
    "metadata": st.dictionaries(TEXTS, TEXTS),
    "include": st.lists(TEXTS, max_size=2),
}


@pytest.mark.hypothesis
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_whatever_is_sent_is_answered_and_never_with_a_500(backend: str) -> None:
    model = ScriptedModel(["a", "b", "\n\n", "c"])
    bodies = st.fixed_dictionaries({}, optional={k: v | JUNK for k, v in VALUES.items()})
    likely = st.fixed_dictionaries(
        {"input": VALUES["input"]},
        optional={k: VALUES[k] for k in ("stream", "instructions", "metadata")},
    )
    sent = (bodies | likely).map(json.dumps).map(str.encode) | st.binary(max_size=50)

    @given(body=sent)
    @settings(deadline=None)
    def ask(body: bytes) -> None:
        headers = {"content-type": "application/json"}
        response = client.post(RESPONSES, content=body, headers=headers)
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            error_of(response)
        elif response.headers["content-type"].startswith("text/event-stream"):
            assert checked(response.text)[-1]["type"] == "response.completed"
        else:
            Response.model_validate(response.json(), strict=True)

    with start_blocking_portal(backend) as portal:
        with portal.wrap_async_context_manager(open_engine(model, model.tokenizer)) as engine:
            with portal.wrap_async_context_manager(serving(create_app(engine))) as url:
                with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
                    ask()
