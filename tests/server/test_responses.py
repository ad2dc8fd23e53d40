"""`/v1/responses`: OpenAI's objects and events, its client, refusals, and who leaves. No torch."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from anystreamer import Engine, open_engine
from anystreamer.server import create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import until
from ..helpers.serving import SERVERS, client_of, events_of, official, serving

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    # Of who breaks off on trio. The generators are the clients', which leave them to be collected.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx|httpcore|openai):ResourceWarning"),
]

RESPONSES = "/v1/responses"
ENDLESS = ["word "] * 20_000
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PROMPT = "user: Hi!\nassistant: "


@asynccontextmanager
async def edge(
    model: ScriptedModel, *, server: str = "", max_waiting: int | None = None, **kwargs: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """A client of a server of an application of an engine of *model*."""
    async with open_engine(model, model.tokenizer, max_waiting=max_waiting) as engine:
        async with serving(create_app(engine, **kwargs), server) as url:
            async with client_of(url) as client:
                yield client, engine


def checked(body: str) -> list[dict[str, Any]]:
    """The events of a body: each is valid, has its name, and its number in the sequence."""
    events = []
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
    part = {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
    item = {
        "id": added["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    assert (done["text"], part_done["part"], item_done["item"]) == (said, part, item)
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
    expected = {
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
