"""`response_format` through the edge: OpenAI's client, and an engine that is remote."""

from __future__ import annotations

import json
from typing import Any, Literal

import pydantic
import pytest

from anystreamer import Choice, Grammar, Regex, open_engine
from anystreamer.demo import load_demo
from anystreamer.remote import open_remote_engine
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.batchings import BATCHINGS
from ..helpers.serving import LEFT_GENERATORS, client_of, data_of, official, serving

pytest.importorskip("llguidance")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    LEFT_GENERATORS,
]

Batching = Literal["none", "continuous"]
CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "Count."}]
Word = Literal["one", "two", "three"]


class Interval(pydantic.BaseModel):
    start: Word
    end: Word


SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": ["one", "two"]}},
    "required": ["n"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_openais_client_gets_its_class_back(batching: Batching) -> None:
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer, batching=batching) as engine:
        async with serving(create_app(engine)) as url, official(url) as client:
            answer = await client.chat.completions.parse(
                model="anystreamer", messages=MESSAGES, response_format=Interval, max_tokens=200
            )
            assert isinstance(answer.choices[0].message.parsed, Interval)
            async with client.chat.completions.stream(
                model="anystreamer", messages=MESSAGES, response_format=Interval, max_tokens=200
            ) as stream:
                final = await stream.get_final_completion()
            assert isinstance(final.choices[0].message.parsed, Interval)


@pytest.mark.parametrize("stream", [False, True])
async def test_each_choice_keeps_to_the_schema(stream: bool) -> None:
    model, tokenizer = load_demo()
    body = {"messages": MESSAGES, "response_format": AS_SCHEMA, "n": 3, "stream": stream}
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            response = await client.post(CHAT, json=body | {"max_tokens": 60, "temperature": 1.5})
            assert response.status_code == 200, response.text
            plain = await client.post(
                CHAT,
                json={"messages": MESSAGES, "response_format": {"type": "text"}, "max_tokens": 3},
            )
            assert plain.status_code == 200
            objects = await client.post(
                CHAT,
                json={
                    "messages": MESSAGES,
                    "response_format": {"type": "json_object"},
                    "max_tokens": 1,
                },
            )
            assert objects.json()["choices"][0]["message"]["content"].startswith("{")
    texts = [""] * 3
    if stream:
        for event in data_of(response.text)[:-1]:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
    else:
        for choice in response.json()["choices"]:
            texts[choice["index"]] = choice["message"]["content"]
    assert all(json.loads(text)["n"] in ("one", "two") for text in texts)


async def test_the_form_that_hugging_faces_client_sends() -> None:
    """It makes a `value` of OpenAI's schema, as text-generation-inference has it."""
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            for form in (
                {"type": "json_object", "value": SCHEMA},
                {"type": "json", "value": SCHEMA},
                {"type": "regex", "value": r'\{"n": "(one|two)"\}', "json_schema": None},
                {**AS_SCHEMA, "value": None},
            ):
                body = {"messages": MESSAGES, "response_format": form, "max_tokens": 60}
                response = await client.post(CHAT, json=body)
                assert response.status_code == 200, response.text
                content = response.json()["choices"][0]["message"]["content"]
                assert json.loads(content)["n"] in ("one", "two")


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
async def test_a_schema_where_clients_of_other_servers_have_it(kind: str) -> None:
    """llama.cpp, SGLang, Together and Fireworks take it beside the type."""
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            form = {"type": kind, "schema": SCHEMA, "json_schema": None}
            body = {"messages": MESSAGES, "response_format": form, "max_tokens": 60}
            response = await client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    content = response.json()["choices"][0]["message"]["content"]
    assert json.loads(content)["n"] in ("one", "two")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "text", "schema": SCHEMA}, "schema is allowed with"),
    ({**AS_SCHEMA, "schema": SCHEMA}, "schema is allowed with"),
    ({"type": "json_object", "schema": SCHEMA, "value": SCHEMA}, "schema is allowed with"),
    ({"type": "json_object", "schema": "{}"}, "schema"),
    ({"type": "json_object", "schema": {"type": "foo"}}, "response_format is not valid"),
    ({"type": "json"}, "value must be a JSON schema with the types json and json_object"),
    ({"type": "regex"}, "a regular expression with the type regex"),
    ({"type": "regex", "value": {}}, "value must be"),
    ({"type": "json_object", "value": "a"}, "value must be"),
    ({"type": "text", "value": "a"}, "value must be"),
    ({**AS_SCHEMA, "value": SCHEMA}, "value must be"),
    ({"type": "regex", "value": "("}, "response_format is not valid"),
    ({"type": "json_schema"}, "json_schema is required with"),
    (
        {"type": "json_object", "json_schema": {"name": "n", "schema": {}}},
        "json_schema is required with",
    ),
    ({"type": "xml"}, "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "n"}}, "schema"),
    ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "name"),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "foo"}}},
        "response_format is not valid: Invalid type",
    ),
    (  # a name in the schema is not taken for that of a parameter
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#/top_k"}}},
        "response_format is not valid: Pointer '/top_k'",
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "http://a.b/c"}}},
        "response_format is not valid",
    ),
]


async def test_what_is_no_form_is_a_400_that_says_why() -> None:
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            for form, reason in REFUSED:
                for stream in (False, True):
                    body = {"messages": MESSAGES, "response_format": form, "stream": stream}
                    response = await client.post(CHAT, json=body)
                    assert response.status_code == 400, response.text
                    error = response.json()["error"]
                    assert reason in error["message"]
                    assert error["param"].startswith("response_format")


@pytest.mark.parametrize("batching", ["none", "continuous"])
async def test_a_form_that_is_too_complex_is_a_400(batching: Batching) -> None:
    """At once, or when the answer comes to it: then within the stream, as it has begun."""
    wide = {"anyOf": [{"type": "object", "properties": {f"p{n}": {}}} for n in range(1000)]}
    late = {"type": "object", "properties": {"n": wide}, "required": ["n"]}
    model, tokenizer = load_demo()
    async with (
        open_engine(model, tokenizer, batching=batching) as engine,
        serving(create_app(engine)) as url,
        client_of(url) as client,
    ):
        for schema, stream in ((wide, False), (wide, True), (late, False), (late, True)):
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            body = {"messages": MESSAGES, "response_format": form, "stream": stream}
            response = await client.post(CHAT, json=body)
            if schema is late and stream:
                assert response.status_code == 200
                *_, last, done = data_of(response.text)
                assert done == "[DONE]"
            else:
                assert response.status_code == 400, response.text
                last = response.json()
            assert last["error"]["type"] == "invalid_request_error"
            assert last["error"]["param"] == "response_format"
            assert "too complex" in last["error"]["message"]


async def test_a_model_that_cannot_keep_to_a_form_is_a_400() -> None:
    model = ScriptedModel(["a"])
    async with open_engine(model, model.tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            body = {"messages": MESSAGES, "response_format": AS_SCHEMA}
            response = await client.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"


async def test_a_remote_engine_gives_the_class_back() -> None:
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with open_remote_engine(f"{url}/v1", "anystreamer", api_key="x") as remote:
            async with remote.stream_text(
                MESSAGES, response_format=Interval, max_new_tokens=200
            ) as stream:
                await stream.read()
            assert isinstance(stream.parsed, Interval)
            async with remote.stream_text(
                MESSAGES, response_format=SCHEMA, max_new_tokens=3
            ) as stream:
                await stream.read()
            assert stream.parsed is None
            async with remote.stream_text(
                MESSAGES, response_format="json", max_new_tokens=1
            ) as stream:
                assert (await stream.read()).startswith("{")
            for form in (Choice(["a"]), Regex("a"), Grammar('start: "a"')):
                with pytest.raises(ValueError, match="response_format has no counterpart"):
                    remote.stream_text(MESSAGES, response_format=form)
            with pytest.raises(ValueError, match="only in a chat"):
                remote.stream_text("Count", response_format=SCHEMA)
