"""Fields that ``generate()`` acts on, with a real model and with the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import httpx
import openai
import pytest

from anystreamer import Engine, open_engine, stream_text
from anystreamer.demo import load_demo
from anystreamer.server import create_app

from ..helpers.serving import LEFT_GENERATORS, client_of, data_of, error_of, official, serving
from .test_server import CHAT, TEXT

pytestmark = [pytest.mark.torch, LEFT_GENERATORS]

PROMPT = "An increasing sequence: one,"
MESSAGES: list[Any] = [{"role": "user", "content": "Count from one to two."}]

# What popular clients send, as they were seen to, and more of its kind.
SENT: list[dict[str, Any]] = [
    {"user": "u1"},
    {"metadata": {"a": "b"}},
    {"store": False},
    {"store": True},
    {"service_tier": "auto"},
    {"safety_identifier": "x"},
    {"prompt_cache_key": "x"},
    {"logit_bias": {}},
    {"logit_bias": {"5": -100}},
    {"response_format": {"type": "text"}},
    {"top_k": 20},
    {"top_k": -1},
    {"min_p": 0.05},
    {"repetition_penalty": 1.0},
    {"repetition_penalty": 1.01},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"tool_choice": "auto"},
    {"tools": []},
    {"n": 2},
    {"skip_special_tokens": True},
    {"min_tokens": 2},
    {"messages": [{**MESSAGES[0], "name": "Ada"}]},
]

demo = cache(load_demo)


@asynccontextmanager
async def edge(**kwargs: Any) -> AsyncIterator[tuple[httpx.AsyncClient, str, Engine]]:
    async with open_engine(*demo(), **kwargs) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            yield client, url, engine


async def test_what_clients_send_is_answered_whole_and_in_chunks() -> None:
    async with edge() as (_, url, _), official(url) as client:
        ask = partial(client.chat.completions.create, model="anystreamer")
        for extra in SENT:
            body: Any = {"messages": MESSAGES, **extra}
            messages = body.pop("messages")
            whole: Any = await ask(messages=messages, extra_body={**body, "temperature": 0})
            texts = [choice.message.content for choice in whole.choices]
            assert texts == ["one, two."] * body.get("n", 1), extra
            streamed = ""
            chunks: Any = await ask(
                messages=messages, stream=True, extra_body={**body, "temperature": 0}
            )
            async for chunk in chunks:
                streamed += "".join(
                    each.delta.content or "" for each in chunk.choices if not each.index
                )
            assert streamed == "one, two.", extra


async def test_the_answers_are_those_of_the_arguments_of_stream_text() -> None:
    model, tokenizer = demo()
    (comma,) = tokenizer(",", add_special_tokens=False)["input_ids"]
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
        ({"presence_penalty": 2}, {"presence_penalty": 2.0}),
        ({"logit_bias": {str(comma): -100}}, {"logit_bias": {comma: -100.0}}),
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"stop_token_ids": [comma]}, {"eos_token_id": [1, comma]}),
        ({"ignore_eos": True}, {"eos_token_id": None}),
        ({"min_tokens": 20}, {"min_new_tokens": 20}),
        ({"skip_special_tokens": False}, {"skip_special_tokens": False}),
    ]
    prompt = "Count: one, two,"
    common: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}
    texts = []
    async with edge() as (client, _, _):
        for body, arguments in asked:
            async with stream_text(model, tokenizer, prompt, **common, **arguments) as stream:
                texts.append(await stream.read())
            full = {"prompt": prompt, "temperature": 0, "max_tokens": 24, **body}
            answer = (await client.post(TEXT, json=full)).json()
            assert answer["choices"][0]["text"] == texts[-1], body
            assert answer["usage"]["completion_tokens"] == len(stream.token_ids)
            chunks = data_of((await client.post(TEXT, json={**full, "stream": True})).text)
            assert "".join(each["choices"][0]["text"] for each in chunks[:-1]) == texts[-1]
    plain = await ask_plain(prompt)
    assert sum(text != plain for text in texts) >= 5  # most of them do something here


async def ask_plain(prompt: str) -> str:
    async with stream_text(*demo(), prompt, do_sample=False, max_new_tokens=24) as stream:
        return await stream.read()


async def test_a_special_token_stops_by_its_id() -> None:
    """In chats, too, where the client writes the name of the token that ends a turn."""
    stop = ["<|user|>", "<|end|>"]
    async with edge() as (client, _, _):
        user: Any = demo()[1].convert_tokens_to_ids("<|user|>")
        body: dict[str, Any] = {"prompt": PROMPT, "stop": stop, "max_tokens": 9, "temperature": 0}
        body |= {"logit_bias": {str(user): 100}}
        (choice,) = (await client.post(TEXT, json=body)).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("", "stop")
        answer = (await client.post(TEXT, json=body)).json()
        assert answer["usage"]["completion_tokens"] == 1
        chunks = data_of((await client.post(TEXT, json={**body, "stream": True})).text)
        assert chunks[-2]["choices"][0]["stop_reason"] == "<|user|>"


async def test_where_a_message_goes_on() -> None:
    messages = [
        {"role": "user", "content": "Count from seven to twelve."},
        {"role": "assistant", "content": "seven, eight, nine,"},
    ]
    async with edge() as (client, _, _):
        for more in ({}, {"add_generation_prompt": False}):
            body = {"messages": messages, "continue_final_message": True, **more}
            (choice,) = (await client.post(CHAT, json={**body, "logprobs": True})).json()["choices"]
            assert choice["message"]["content"] == " ten, eleven, twelve."
            tokens = choice["logprobs"]["content"]
            assert tokens[0]["token"] == " ten"


async def test_who_cannot_do_it_for_one_request_says_so() -> None:
    """By the field's own name, before the stream; what it can do, it does."""
    async with edge(batching="continuous") as (client, _, _):
        for name, value in (
            ("min_p", 0.5),
            ("min_tokens", 3),
            ("seed", 3),
        ):
            for stream in (False, True):
                body = {"prompt": PROMPT, name: value, "stream": stream, "max_tokens": 9}
                response = await client.post(TEXT, json=body)
                assert response.status_code == 400, body
                assert error_of(response)["param"] == name
        done: list[dict[str, Any]] = [
            {"top_k": 1},
            {"logit_bias": {}},
            {"logit_bias": {"5": 0.001}},
            {"frequency_penalty": 0.001},
            {"presence_penalty": 0.001},
            {"repetition_penalty": 1.0001},
            {"ignore_eos": True},
            {"stop_token_ids": [0]},
        ]
        for more in done:
            full: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, **more}
            answer = (await client.post(TEXT, json=full)).json()
            assert answer["choices"][0]["text"] == " two, three, four, five,"


async def test_ids_that_the_model_does_not_have() -> None:
    async with edge() as (client, url, _), official(url) as official_client:
        wrong: list[dict[str, Any]] = [{"logit_bias": {"100000": 1}}, {"prompt": [100_000]}]
        for body in wrong:
            for stream in (False, True):
                response = await client.post(
                    TEXT, json={"prompt": PROMPT, "stream": stream, **body}
                )
                assert response.status_code == 400
                assert error_of(response)["param"] == next(iter(body))
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await official_client.completions.create(
                model="anystreamer", prompt=PROMPT, temperature=3, stream=True
            )
