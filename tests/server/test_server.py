"""The edge, through real servers and real clients: format, refusals, and who leaves. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import anyio.abc
import httpx
import openai
import pytest
from anyio import CancelScope, create_task_group
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from anystreamer import Engine, Timeouts, open_engine
from anystreamer._installing import to_install
from anystreamer.server import create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, until
from ..helpers.serving import (
    LEFT_GENERATORS,
    SERVERS,
    client_of,
    data_of,
    edge,
    error_of,
    official,
    serving,
)

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    LEFT_GENERATORS,
]

ENDLESS = ["word "] * 20_000
MESSAGES = [{"role": "user", "content": "Hi!"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


# -- the format


@pytest.mark.parametrize("server", SERVERS)
async def test_a_chat_in_chunks_is_openai_s_to_the_letter(server: str) -> None:
    gate = Gate()
    model = ScriptedModel(["one ", gate, "\u2028\r\ntwo\n\n", '"three"'])
    body = {
        "model": "counter",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with edge(model, server=server, model_name="counter") as (client, _):
        async with client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-cache"
            text = ""
            async for part in response.aiter_text():
                text += part
                if "one" in text:
                    gate.open()
    chunks = data_of(text)
    assert chunks.pop() == "[DONE]"
    for chunk in chunks:
        assert chunk["id"].startswith("chatcmpl-")
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "counter"
        assert isinstance(chunk["created"], int)
    assert len({chunk["id"] for chunk in chunks}) == 1
    usage = chunks.pop()
    assert usage["choices"] == []
    prompt = len("user: Hi!\nassistant: ")
    assert usage["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
    }
    assert all(chunk["usage"] is None for chunk in chunks)
    choices = [chunk["choices"] for chunk in chunks]
    assert all(len(each) == 1 and each[0]["index"] == 0 for each in choices)
    deltas = [each[0]["delta"] for each in choices]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"content": "one "}
    assert all(set(delta) == {"content"} for delta in deltas[1:-1])
    assert "".join(d["content"] for d in deltas[1:-1]) == 'one \u2028\r\ntwo\n\n"three"'
    assert deltas[-1] == {}
    assert [each[0]["finish_reason"] for each in choices] == [None] * (len(choices) - 1) + ["stop"]


async def test_a_chat_in_one_piece() -> None:
    async with edge(ScriptedModel(["one ", "two"]), model_name="counter") as (client, _):
        answer = (await client.post(CHAT, json={"messages": MESSAGES})).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_completion_in_chunks_and_in_one_piece() -> None:
    async with edge(ScriptedModel(["one ", "two"])) as (client, _):
        response = await client.post(TEXT, json={"prompt": "Hi", "stream": True, "max_tokens": 1})
        *chunks, done = data_of(response.text)
        assert done == "[DONE]"
        assert all(chunk["object"] == "text_completion" for chunk in chunks)
        assert all("usage" not in chunk for chunk in chunks)
        assert [chunk["choices"][0] for chunk in chunks] == [
            {"index": 0, "text": "one ", "logprobs": None, "finish_reason": None},
            {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"},
        ]
        answer = (await client.post(TEXT, json={"prompt": ["Hi", "Ho"], "n": 2})).json()
    assert answer["id"].startswith("cmpl-")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert {choice["text"] for choice in answer["choices"]} == {"one two"}
    # Each prompt counts once, and all of the answers.
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}


async def test_several_choices_in_chunks_keep_their_indices() -> None:
    body = {"messages": MESSAGES, "n": 3, "stream": True, "stream_options": {"include_usage": True}}
    async with edge(ScriptedModel(["a", "b", "c"])) as (client, _):
        *chunks, usage, done = data_of((await client.post(CHAT, json=body)).text)
    assert done == "[DONE]"
    for index in range(3):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "abc"
        assert [choice["finish_reason"] for choice in choices][-1] == "stop"
    assert usage["usage"]["completion_tokens"] == 12
    assert usage["usage"]["prompt_tokens"] == len("user: Hi!\nassistant: ")


@pytest.mark.parametrize("stop", ["STOP", ["nothing", "STOP"]])
async def test_a_stop_string_ends_the_text_and_is_not_shown(stop: Any) -> None:
    async with edge(ScriptedModel(["one ", "ST", "OP", "two"])) as (client, _):
        whole = await client.post(CHAT, json={"messages": MESSAGES, "stop": stop})
        chunks = await client.post(TEXT, json={"prompt": "Hi", "stop": stop, "stream": True})
    choice = whole.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")
    said = [chunk["choices"][0] for chunk in data_of(chunks.text)[:-1]]
    assert "".join(choice["text"] for choice in said) == "one "
    assert said[-1]["finish_reason"] == "stop"


async def test_what_is_ready_together_shares_an_event() -> None:
    gate = Gate()
    model = ScriptedModel([gate, *["a"] * 1_000])
    async with edge(model) as (client, _):
        gate.open()
        response = await client.post(TEXT, json={"prompt": "Hi", "stream": True})
    chunks = data_of(response.text)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "a" * 1_000
    assert len(chunks) < 1_000


async def test_no_text_at_all_is_an_answer_too() -> None:
    async with edge(ScriptedModel([])) as (client, _):
        chunks = data_of(
            (await client.post(CHAT, json={"messages": MESSAGES, "stream": True})).text
        )
        answer = (await client.post(CHAT, json={"messages": MESSAGES})).json()
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {},
    ]
    assert answer["choices"][0]["message"]["content"] == ""


async def test_the_engine_is_asked_for_what_the_client_asks_for() -> None:
    model = ScriptedModel(["a"])
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]
    asked: list[dict[str, Any]] = [
        {},
        {"temperature": 0, "top_p": 0.5, "max_tokens": 7},
        {"temperature": 0.5, "max_completion_tokens": 8, "frequency_penalty": 0},
        {"top_p": 1, "max_tokens": None, "stop": None, "n": 1},
        {"messages": [{"role": "developer", "content": parts}]},
    ]
    async with edge(model, default_max_tokens=100, max_tokens_limit=50) as (client, _):
        for each in asked:
            response = await client.post(CHAT, json={"messages": MESSAGES, **each})
            assert response.status_code == 200, response.text
    first, greedy, warm, nucleus, parted = model.calls
    assert (first.pop("input_ids"), first) == ([[*map(ord, "user: Hi!\nassistant: ")]], first)
    assert first == {"max_new_tokens": 50}
    assert greedy["do_sample"] is False
    assert "top_p" not in greedy
    assert greedy["max_new_tokens"] == 7
    assert (warm["do_sample"], warm["temperature"], warm["max_new_tokens"]) == (True, 0.5, 8)
    assert (nucleus["temperature"], nucleus["top_p"]) == (1.0, 1.0)
    assert parted["input_ids"] == [[*map(ord, "system: Hi!\nassistant: ")]]


# -- refusals


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"users": "me"}, "users"),
    (CHAT, {"logprobs": True}, "logprobs"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (TEXT, {"prompt": "Hi", "logprobs": 1}, "logprobs"),
    (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty"),  # nor has it logits
    (CHAT, {"temperature": 2.5}, "temperature"),
    (CHAT, {"temperature": "0.5"}, "temperature"),
    (CHAT, {"seed": 1}, "seed"),  # a scripted model draws by none
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": True}, "n"),
    (CHAT, {"max_tokens": 51}, "max_tokens"),
    (CHAT, {"max_completion_tokens": 51}, "max_completion_tokens"),
    (CHAT, {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    (CHAT, {"stop": ""}, "stop"),
    (CHAT, {"stop": [""]}, "stop[0]"),
    (CHAT, {"stop": [1]}, "stop[0]"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "Hi"}, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "ghost", "content": ""}]}, "messages[0].role"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "", "nam": "me"}]}, "messages[0].nam"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    (TEXT, {"messages": MESSAGES, "prompt": "Hi"}, "messages"),
    (TEXT, {}, "prompt"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": [1, -2]}, "prompt[1]"),
    (TEXT, {"prompt": "Hi", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": "Hi", "echo": True, "logprobs": 1}, "echo"),
    (TEXT, {"prompt": ["Hi"] * 100, "n": 2}, "n"),
]


async def test_what_is_not_supported_is_refused_by_name() -> None:
    model = ScriptedModel(["a"])
    async with edge(model, max_tokens_limit=50) as (client, engine):
        for path, body, param in REFUSED:
            full = {"messages": MESSAGES, **body} if path == CHAT else body
            response = await client.post(path, json=full)
            assert response.status_code == 400, (body, response.text)
            error = error_of(response)
            assert (error["type"], error["param"]) == ("invalid_request_error", param), body
        assert engine.statistics().running == 0
    assert not model.calls


async def test_bodies_that_are_none() -> None:
    headers = {"content-type": "application/json"}
    async with edge(ScriptedModel(["a"])) as (client, _):
        for body in (b"", b"{", b"[]", b"\xff", b"NaN", b'{"messages": NaN}', b"[" * 10_000):
            response = await client.post(CHAT, content=body, headers=headers)
            assert response.status_code == 400
            assert error_of(response)["type"] == "invalid_request_error"
        lone = b'{"prompt": "\\ud800"}'
        assert (await client.post(TEXT, content=lone, headers=headers)).status_code == 400
        # What a page of another site can send without asking.
        response = await client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
        assert response.status_code == 415
        error_of(response)


async def test_paths_methods_and_models_that_there_are_not() -> None:
    body = {"messages": MESSAGES, "model": "other"}
    async with edge(ScriptedModel(["a"]), model_name="org/counter") as (client, _):
        for response, status in (
            (await client.get("/v1/nothing"), 404),
            (await client.get(CHAT), 405),
            (await client.post(CHAT, json=body), 404),
            (await client.get("/v1/models/other"), 404),
        ):
            assert response.status_code == status
            error_of(response)
        assert error_of(await client.post(CHAT, json=body))["code"] == "model_not_found"
        models = (await client.get("/v1/models")).json()
        assert models["object"] == "list"
        (card,) = models["data"]
        assert (card["id"], card["object"]) == ("org/counter", "model")
        assert (await client.get("/v1/models/org/counter")).json() == card


async def test_a_slash_at_the_end_of_a_path_is_not_redirected() -> None:
    """A redirect would have a whole address, whose scheme and host are not those of a proxy."""
    async with edge(ScriptedModel(["a"])) as (client, _):
        for path in ("/v1/models", "/health", "/metrics"):
            assert (await client.get(f"{path}/")).status_code == 200
        for path, body in (
            (CHAT, {"messages": MESSAGES}),
            (TEXT, {"prompt": "a"}),
            ("/v1/responses", {"input": "a"}),
        ):
            assert (await client.post(f"{path}/", json=body)).status_code == 200
            assert (await client.get(f"{path}/")).status_code == 405
        for path in ("/v1/", "/v1/nothing/", "/page.js/"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("server", SERVERS)
async def test_a_body_that_is_too_large(server: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    async with edge(ScriptedModel(["a"]), server=server, max_body_bytes=1_000) as (client, _):
        for content in (b" " * 1_001, parts()):  # with its length, and without
            response = await client.post(CHAT, content=content, headers=headers)
            assert response.status_code == 413
            assert error_of(response)["code"] == "request_too_large"
        fits = json.dumps({"prompt": "Hi"}).ljust(1_000)
        assert (await client.post(TEXT, content=fits, headers=headers)).status_code == 200


async def test_a_key_is_asked_for() -> None:
    body = {"messages": MESSAGES}
    async with edge(ScriptedModel(["a"]), api_key="gehëim") as (client, _):
        for key in (None, "Bearer", "Bearer wrong", "Basic gehëim", "gehëim"):
            headers = [] if key is None else [(b"authorization", key.encode())]
            for response in (
                await client.post(CHAT, json=body, headers=headers),
                await client.get("/v1/models", headers=headers),
                await client.get("/metrics", headers=headers),
            ):
                assert response.status_code == 401, key
                assert response.headers["www-authenticate"] == "Bearer"
                assert error_of(response)["code"] == "invalid_api_key"
        right = [(b"authorization", "Bearer gehëim".encode())]
        assert (await client.post(CHAT, json=body, headers=right)).status_code == 200
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("server", SERVERS)
async def test_a_busy_engine_is_503_and_says_when_to_come_again(server: str) -> None:
    gate = Gate()
    async with edge(ScriptedModel([gate, "a"]), server=server, max_waiting=0) as (client, _):
        async with create_task_group() as tasks:
            tasks.start_soon(partial(client.post, TEXT, json={"prompt": "Hi"}))
            await gate.reached()
            for stream in (False, True):
                body = {"prompt": "Hi", "stream": stream}
                response = await client.post(TEXT, json=body)
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) > 0
                assert error_of(response)["code"] == "engine_busy"
            gate.open()


async def test_of_several_choices_all_fit_or_none() -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with edge(model, max_waiting=1) as (client, engine):
        body = {"prompt": "Hi", "max_tokens": 10**6}
        response = await client.post(TEXT, json={**body, "n": 3, "stream": True})
        assert response.status_code == 503
        await until(lambda: not engine.statistics().running)
        body = {"prompt": "Hi", "max_tokens": 1}
        assert (await client.post(TEXT, json={**body, "n": 2})).status_code == 200


async def test_too_long_a_prompt_is_400() -> None:
    model = ScriptedModel(["a"] * 30)
    async with edge(model, context_length=20) as (client, _):
        error = error_of(await client.post(TEXT, json={"prompt": "x" * 20}))
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        error = error_of(await client.post(TEXT, json={"prompt": "x" * 15, "max_tokens": 6}))
        assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
        # Where nobody asks, it is what there is room for.
        (choice,) = (await client.post(TEXT, json={"prompt": "x" * 15})).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("a" * 5, "length")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("endpoint", [TEXT, CHAT, "/v1/responses"])
async def test_a_default_limit_that_does_not_fit_opens_one_stream(endpoint: str, n: int) -> None:
    """For each answer. Its request takes the room that is left when its prompt is encoded."""
    bodies: dict[str, Any] = {TEXT: {"prompt": "x" * 15}, CHAT: {"messages": MESSAGES}}
    body = bodies.get(endpoint, {"input": "x"})
    if endpoint != "/v1/responses":  # which has one answer
        body["n"] = n
    else:
        n = 1
    model = ScriptedModel(["a"] * 200)
    async with edge(model, context_length=60) as (client, engine):
        assert (await client.post(endpoint, json=body)).status_code == 200
        prompt = len(model.calls[0]["input_ids"][0])
        assert [each["max_new_tokens"] for each in model.calls] == [60 - prompt] * n
        assert engine.statistics().total.count == n


async def test_an_engine_of_another_kind_gets_a_limit_that_fits() -> None:
    """To it the limit is a number: the answer is opened again with a smaller one."""
    model = ScriptedModel(["a"] * 200)

    class Other:
        """Takes numbers as they are, and has no context of its own."""

        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def stream_text(self, prompt: Any, *, max_new_tokens: int, **arguments: Any) -> Any:
            # `+` makes a plain int.
            return self._engine.stream_text(prompt, max_new_tokens=max_new_tokens + 0, **arguments)

        def statistics(self) -> Any:
            return self._engine.statistics()

    async with open_engine(model, model.tokenizer) as engine:
        other: Any = Other(engine)
        app = create_app(other, context_length=20)
        async with serving(app) as url, client_of(url) as client:
            (choice,) = (await client.post(TEXT, json={"prompt": "x" * 15})).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a" * 5, "length")


# -- errors of the model


@pytest.mark.parametrize("server", SERVERS)
async def test_an_error_in_the_stream_is_an_event_before_the_end(server: str) -> None:
    model = ScriptedModel(["one ", OSError("a secret")])
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    async with edge(model, server=server) as (client, _):
        for n in (1, 2):
            response = await client.post(CHAT, json={**body, "n": n})
            *chunks, error, done = data_of(response.text)
            assert done == "[DONE]"
            assert error == {
                "error": {
                    "message": "the model failed",
                    "type": "server_error",
                    "param": None,
                    "code": None,
                }
            }
            assert "secret" not in response.text
            assert chunks[1]["choices"][0]["delta"] == {"content": "one "}
        response = await client.post(CHAT, json={"messages": MESSAGES})
        assert response.status_code == 500
        assert error_of(response)["message"] == "the model failed"


async def test_a_timeout_is_said() -> None:
    timeout = Timeouts(between_tokens=0.05)
    async with edge(ScriptedModel(["one ", 0.2, "two "]), timeout=timeout) as (client, _):
        response = await client.post(CHAT, json={"messages": MESSAGES})
        assert response.status_code == 504
        assert error_of(response)["code"] == "between_tokens"
        response = await client.post(CHAT, json={"messages": MESSAGES, "stream": True})
        assert response.status_code == 200
        *_, error, done = data_of(response.text)
        assert error["error"]["type"] == "timeout_error"
        assert done == "[DONE]"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("n", [1, 2])
async def test_an_error_before_the_first_text_has_its_status(server: str, n: int) -> None:
    """A stream's head waits for its first text, or for its first comment."""
    body = {"prompt": "Hi", "stream": True, "n": n}
    async with edge(ScriptedModel([OSError("a secret")]), server=server) as (client, _):
        response = await client.post(TEXT, json=body)
        assert response.status_code == 500
        assert error_of(response)["message"] == "the model failed"
    gate = Gate()
    timeout = Timeouts(queued=0.05)
    async with edge(ScriptedModel([gate]), server=server, timeout=timeout) as (client, engine):
        async with engine.stream_text("first"):  # which may wait as long as it has to
            await gate.reached()
            response = await client.post(TEXT, json=body)
            assert response.status_code == 504
            assert error_of(response)["code"] == "queued"
            gate.open()


async def test_an_error_after_a_comment_is_an_event() -> None:
    gate = Gate()
    async with edge(ScriptedModel([gate, OSError("a secret")]), keep_alive=0.01) as (client, _):
        text = ""
        async with client.stream("POST", TEXT, json={"prompt": "Hi", "stream": True}) as response:
            assert response.status_code == 200
            async for part in response.aiter_text():
                text += part
                gate.open()
    error, done = data_of(text)
    assert (error["error"]["message"], done) == ("the model failed", "[DONE]")


async def test_an_engine_that_closes_says_so() -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    told = []

    close = anyio.Event()

    async def own(*, task_status: anyio.abc.TaskStatus[Engine]) -> None:
        async with open_engine(model, model.tokenizer) as engine:
            task_status.started(engine)
            await close.wait()

    async with create_task_group() as tasks:
        engine = await tasks.start(own)
        async with serving(create_app(engine)) as url, client_of(url) as client:

            async def ask() -> None:
                body = {"messages": MESSAGES, "stream": True, "max_tokens": 10**6}
                told.append(await client.post(CHAT, json=body))

            assert (await client.get("/health")).json() == {"status": "open"}
            tasks.start_soon(ask)
            await until(lambda: model.steps > 3)
            close.set()
            await until(lambda: told)
            *_, error, done = data_of(told[0].text)
            assert error["error"]["code"] == "engine_unavailable"
            assert done == "[DONE]"
            assert (await client.post(CHAT, json={"messages": MESSAGES})).status_code == 503
            health = await client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "closed"})


@pytest.mark.parametrize("server", SERVERS)
async def test_a_stream_is_kept_alive_while_the_first_token_is_awaited(server: str) -> None:
    gate = Gate()
    async with edge(ScriptedModel([gate, "a"]), server=server, keep_alive=0.01) as (client, _):
        body = {"messages": MESSAGES, "stream": True}
        text = ""
        async with client.stream("POST", CHAT, json=body) as response:
            async for part in response.aiter_text():
                text += part
                if text.count(": keep-alive\n\n") >= 3:
                    gate.open()
    assert text.startswith(": keep-alive\n\n" * 3)
    assert data_of(text)[1]["choices"][0]["delta"] == {"content": "a"}


# -- who leaves


@pytest.mark.parametrize("server", SERVERS)
async def test_who_leaves_a_stream_stops_the_model(server: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with edge(model, server=server) as (client, engine):
        for n in (1, 2):
            body = {"prompt": "Hi", "stream": True, "n": n, "max_tokens": 10**6}
            async with client.stream("POST", TEXT, json=body) as response:
                await anext(response.aiter_text())
                assert model.is_generating
            await until(lambda: not (model.is_generating or engine.statistics().running))
            assert engine.statistics().waiting == 0
    assert model.steps < 2 * len(ENDLESS)


@pytest.mark.parametrize("server", SERVERS)
async def test_who_does_not_wait_for_the_whole_stops_the_model(server: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with edge(model, server=server) as (client, engine):
        async with create_task_group() as tasks:
            body = {"prompt": "Hi", "max_tokens": 10**6}
            tasks.start_soon(partial(client.post, TEXT, json=body))
            await until(lambda: model.steps > 3)
            tasks.cancel_scope.cancel()
        await until(lambda: not (model.is_generating or engine.statistics().running))
        metrics = (await client.get("/metrics")).text
    assert model.steps < len(ENDLESS)
    assert 'outcome="disconnected"} 1.0' in metrics


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_line_is_never_run(server: str, stream: bool) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with edge(model, server=server) as (client, engine), create_task_group() as tasks:
        tasks.start_soon(partial(client.post, TEXT, json={"prompt": "first"}))
        await gate.reached()
        async with create_task_group() as leaving:
            body = {"prompt": "second", "stream": stream}
            leaving.start_soon(partial(client.post, TEXT, json=body))
            await until(lambda: engine.statistics().waiting == 1)
            leaving.cancel_scope.cancel()
        await until(lambda: engine.statistics().waiting == 0)
        gate.open()
    assert len(model.calls) == 1


async def test_many_at_once_some_of_whom_leave() -> None:
    model = ScriptedModel(["one ", "two ", 0.002, "three"])
    done = []
    async with edge(model) as (client, engine):

        async def ask(number: int) -> None:
            body = {"prompt": "Hi", "stream": True}
            with CancelScope() as scope:
                if number % 3 == 0:
                    scope.deadline = anyio.current_time() + 0.003 * number
                said = data_of((await client.post(TEXT, json=body)).text)
                assert said.pop() == "[DONE]"
                assert "".join(c["choices"][0]["text"] for c in said) == "one two three"
                done.append(number)

        async with create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(ask, number)
        await until(lambda: not (model.is_generating or engine.statistics().running))
        assert engine.statistics().waiting == 0
    assert {number for number in range(60) if number % 3} <= set(done)


# -- metrics


async def test_metrics_tell_of_requests_and_of_the_engine() -> None:
    async with edge(ScriptedModel(["a", "b"])) as (client, _):
        await client.post(TEXT, json={"prompt": "Hi"})
        await client.post(TEXT, json={"prompt": "Hi", "stream": True})
        await client.post(CHAT, json={"nothing": 1})
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = set(response.text.splitlines())
    for line in (
        'anystreamer_http_requests_total{endpoint="completions",outcome="200"} 2.0',
        'anystreamer_http_requests_total{endpoint="chat_completions",outcome="400"} 1.0',
        'anystreamer_http_tokens_total{kind="prompt"} 4.0',
        'anystreamer_http_tokens_total{kind="completion"} 6.0',
        "anystreamer_computed_tokens_total 6.0",
        "anystreamer_first_token_seconds_count 2.0",
        'anystreamer_total_seconds_bucket{le="+Inf"} 2.0',
        "anystreamer_requests_waiting 0.0",
        "anystreamer_up 1.0",
    ):
        assert line in lines


# -- the official client


@pytest.mark.parametrize("server", SERVERS)
async def test_the_openai_client(server: str) -> None:
    model = ScriptedModel(["one ", "two ", "three"])
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine, model_name="counter", api_key="key")
        async with serving(app, server) as url, official(url) as client:
            ask: Any = partial(
                client.chat.completions.create, model="counter", messages=MESSAGES, temperature=0
            )
            whole = await ask()
            assert whole.choices[0].message.content == "one two three"
            assert whole.usage.completion_tokens == 4

            text, reasons, usages = "", [], []
            async for chunk in await ask(stream=True, stream_options={"include_usage": True}):
                usages.append(chunk.usage)
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reasons.append(choice.finish_reason)
            assert text == "one two three"
            assert reasons[-1] == "stop"
            assert usages[-1].total_tokens == whole.usage.total_tokens

            # Its answers can be sent back.
            again = await ask(messages=[*MESSAGES, whole.choices[0].message, *MESSAGES])
            assert again.choices[0].message.content == "one two three"
            listen: Any = partial(client.chat.completions.stream, model="counter")
            async with listen(messages=MESSAGES) as events:
                final = await events.get_final_completion()
            assert final.choices[0].message.content == "one two three"
            completion = await client.completions.create(model="counter", prompt="Hi")
            assert completion.choices[0].text == "one two three"
            assert [each.id async for each in client.models.list()] == ["counter"]
            with pytest.raises(openai.BadRequestError, match="audio is not supported: leave it"):
                await ask(audio={"format": "wav", "voice": "alloy"})
            with pytest.raises(openai.NotFoundError):
                await ask(model="other")


async def test_the_openai_client_that_breaks_off_and_one_that_gets_an_error() -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine)) as url, official(url) as client:
            stream = await client.completions.create(model="anystreamer", prompt="Hi", stream=True)
            async for _ in stream:
                break
            await stream.close()
            await until(lambda: not (model.is_generating or engine.statistics().running))
    failing = ScriptedModel(["a", OSError("a secret")])
    async with open_engine(failing, failing.tokenizer) as engine:
        async with serving(create_app(engine)) as url, official(url) as client:
            stream = await client.completions.create(model="anystreamer", prompt="Hi", stream=True)
            with pytest.raises(openai.APIError, match="the model failed"):
                async for _ in stream:
                    pass


# -- anything may be sent


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
VALUES: dict[str, Any] = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]),
                "content": st.text()
                | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})),
            }
        ),
        max_size=4,
    ),
    "prompt": st.text() | st.lists(st.text(), max_size=3),
    "model": st.sampled_from(["anystreamer", "other"]),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "max_tokens": st.integers(-1, 2**31),
    "max_completion_tokens": st.integers(-1, 100),
    "temperature": st.floats(-0.1, 2.1),
    "top_p": st.floats(-0.1, 1.1),
    "n": st.integers(0, 5),
    "seed": st.integers(),
    "frequency_penalty": st.floats(-1, 1),
    "logprobs": st.booleans(),
    "tools": st.just([]),
}


@pytest.mark.hypothesis
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_whatever_is_sent_is_answered_and_never_with_a_500(backend: str) -> None:
    model = ScriptedModel(["a", "b", "\n\n", "c"])
    bodies = st.fixed_dictionaries({}, optional={k: v | JUNK for k, v in VALUES.items()})
    likely = st.fixed_dictionaries(
        {"messages": VALUES["messages"]},
        optional={k: VALUES[k] for k in ("stream", "stop", "n", "temperature", "top_p")},
    )
    sent = (bodies | likely).map(json.dumps).map(str.encode) | st.binary(max_size=50)

    @given(path=st.sampled_from([CHAT, TEXT]), body=sent)
    @settings(deadline=None)
    def ask(path: str, body: bytes) -> None:
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            error_of(response)
        elif response.headers["content-type"].startswith("text/event-stream"):
            *chunks, done = data_of(response.text)
            assert done == "[DONE]"
            assert all("error" not in chunk for chunk in chunks)

    with start_blocking_portal(backend) as portal:
        with portal.wrap_async_context_manager(open_engine(model, model.tokenizer)) as engine:
            with portal.wrap_async_context_manager(serving(create_app(engine))) as url:
                with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                    ask()


@pytest.mark.parametrize("name", ["starlette", "pydantic", "prometheus_client"])
def test_what_is_missing_is_said(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; import anystreamer.server"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == f"ImportError: anystreamer.server needs {name}: {to_install('server')}"
