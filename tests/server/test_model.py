"""The edge with a real model, one by one and batched continuously."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import httpx
import pytest
from anyio import create_task_group
from openai.types import Completion
from openai.types.chat import ChatCompletion
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from transformers import ContinuousBatchingConfig

from anystreamer import Engine, TextChunk, open_engine
from anystreamer.demo import load_demo
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.server._openai_choices import Token
from anystreamer.server._tokens import TokenTexts

from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, client_of, data_of, serving
from ..helpers.tiny_models import t5, tokenizer
from ..helpers.tokenizer_families import byte_fallback, byte_level, unigram

pytestmark = [pytest.mark.torch, LEFT_GENERATORS]

PROMPT = "An increasing sequence: one,"
TEXT = "/v1/completions"

demo = cache(load_demo)


@asynccontextmanager
async def edge(**kwargs: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    async with open_engine(*demo(), **kwargs) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            yield client, engine


CONTINUOUS: dict[str, Any] = {
    "batching": "continuous",
    "continuous_batching_config": ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256),
}
AUTO: dict[str, Any] = {**CONTINUOUS, "batching": "auto"}


@pytest.mark.parametrize("kind", [{}, CONTINUOUS, AUTO], ids=["none", "continuous", "auto"])
async def test_all_kinds_of_engine_answer_alike(kind: dict[str, Any]) -> None:
    texts = []
    async with edge(**kind) as (client, _), create_task_group() as tasks:

        async def ask() -> None:
            body = {"prompt": PROMPT, "max_tokens": 8, "stream": True}
            *chunks, done = data_of((await client.post(TEXT, json=body)).text)
            assert done == "[DONE]"
            choices = [chunk["choices"][0] for chunk in chunks]
            assert choices[-1]["finish_reason"] == "length"
            texts.append("".join(choice["text"] for choice in choices))

        for _ in range(4):
            tasks.start_soon(ask)
    assert texts == [" two, three, four, five,"] * 4


@pytest.mark.parametrize("kind", [{}, CONTINUOUS, AUTO], ids=["none", "continuous", "auto"])
async def test_a_default_limit_gives_way_to_the_context(kind: dict[str, Any]) -> None:
    """With the one stream that was opened. `seed` has the second lane of auto."""
    async with open_engine(*demo(), **kind) as engine:
        app = create_app(engine, context_length=10)
        async with serving(app) as url, client_of(url) as client:
            bodies: list[dict[str, Any]] = [{"prompt": PROMPT}]
            bodies += [{"prompt": PROMPT, "seed": 1}] if kind is not CONTINUOUS else []
            for body in bodies:
                answer = (await client.post(TEXT, json=body)).json()
                assert answer["choices"][0]["finish_reason"] == "length"
                assert answer["usage"]["total_tokens"] == 10
            assert engine.statistics().total.count == len(bodies)


async def test_the_answer_of_an_encoder_decoder_has_a_context_of_its_own() -> None:
    async with open_engine(t5(), tokenizer()) as engine:
        app = create_app(engine, context_length=10)
        async with serving(app) as url, client_of(url) as client:
            body = {"prompt": list(range(3, 13)), "ignore_eos": True}
            answer = (await client.post(TEXT, json=body)).json()
            assert answer["usage"]["prompt_tokens"] >= 10
            assert answer["usage"]["completion_tokens"] == 10


async def test_a_chat() -> None:
    body = {"messages": [{"role": "user", "content": "Count from seven to twelve."}]}
    async with edge() as (client, _):
        answer = (await client.post("/v1/chat/completions", json=body)).json()
    (choice,) = answer["choices"]
    assert "seven, eight, nine, ten, eleven, twelve" in choice["message"]["content"].lower()
    assert choice["finish_reason"] == "stop"


async def test_what_continuous_batching_cannot_do_is_refused_by_name() -> None:
    async with edge(**CONTINUOUS) as (client, _):
        for param, value in (
            ("seed", 7),
            ("logprobs", 2),
            ("max_tokens", 100_000),
        ):
            response = await client.post(TEXT, json={"prompt": PROMPT, param: value})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param, response.text
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        for body in ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "seed": 7}):
            response = await client.post("/v1/chat/completions", json={**chat, **body})
            assert response.json()["error"]["param"] == list(body)[-1], response.text


async def test_the_model_s_length_is_known() -> None:
    length = demo()[0].config.max_position_embeddings
    async with edge() as (client, _):
        response = await client.post(TEXT, json={"prompt": "one, " * length})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        body = {"prompt": PROMPT, "max_tokens": length}
        assert (await client.post(TEXT, json=body)).status_code == 400


@pytest.mark.parametrize("kind", [{}, CONTINUOUS], ids=["none", "continuous"])
async def test_who_leaves_stops_the_model(kind: dict[str, Any]) -> None:
    async with edge(**kind) as (client, engine):
        body = {"prompt": PROMPT, "stream": True}
        async with client.stream("POST", TEXT, json=body) as response:
            await anext(response.aiter_text())
        await until(lambda: not engine.statistics().running)
        body = {"prompt": PROMPT, "max_tokens": 8}
        answer = (await client.post(TEXT, json=body)).json()
        assert answer["choices"][0]["text"] == " two, three, four, five,"


async def test_each_token_has_its_log_probability() -> None:
    greedy = {"max_tokens": 8, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": "Count from seven to twelve."}], **greedy}
    async with edge() as (client, _):
        completion = {"prompt": PROMPT, "logprobs": 0, **greedy}
        (choice,) = (await client.post(TEXT, json=completion)).json()["choices"]
        response = await client.post(TEXT, json={**completion, "stream": True})
        chunks = [chunk["choices"][0] for chunk in data_of(response.text)[:-2]]
        chat = {**chat, "logprobs": True, "top_logprobs": 0}
        (said,) = (await client.post("/v1/chat/completions", json=chat)).json()["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert all(-10 < each <= 0 for each in told["token_logprobs"])
    assert len(told["token_logprobs"]) == 8
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [each for chunk in chunks for each in chunk["logprobs"][name]] == told[name]
    content = said["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == said["message"]["content"]
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    assert told["top_logprobs"] is None
    assert all(token["top_logprobs"] == [] for token in content)


async def test_the_likeliest_tokens_are_listed_beside_the_chosen_ones() -> None:
    greedy = {"max_tokens": 4, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": "Count from seven to twelve."}], **greedy}
    async with edge() as (client, _):
        completion = {"prompt": PROMPT, "logprobs": 5, **greedy}
        answer = (await client.post(TEXT, json=completion)).json()
        response = await client.post(TEXT, json={**completion, "stream": True})
        chunks = [chunk["choices"][0] for chunk in data_of(response.text)[:-2]]
        chat = {**chat, "logprobs": True, "top_logprobs": 20}
        said = (await client.post("/v1/chat/completions", json=chat)).json()
    told = answer["choices"][0]["logprobs"]
    tops = [each for chunk in chunks for each in chunk["logprobs"]["top_logprobs"]]
    # The second answer begins with a kept cache, whose numbers are rounded otherwise.
    assert tops == [pytest.approx(each, abs=1e-4) for each in told["top_logprobs"]]
    for token, logprob, top in zip(
        told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())
        assert len(top) == 5
    logprobs = ChatCompletion.model_validate(said, strict=True).choices[0].logprobs
    assert logprobs is not None
    for each in logprobs.content or ():
        assert len(each.top_logprobs) == 20
        assert (each.top_logprobs[0].token, each.top_logprobs[0].logprob) == (
            each.token,
            each.logprob,
        )
        assert math.fsum(math.exp(top.logprob) for top in each.top_logprobs) <= 1 + 1e-6
    Completion.model_validate(answer, strict=True)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram"])
def test_the_texts_of_tokens_are_the_text(kind: str) -> None:
    """Those of tokenizers, too, that drop the space of a text's first token."""
    tokenizers: dict[str, Any] = {
        "byte_level": byte_level,
        "byte_fallback": partial(byte_fallback, strip=True),
        "unigram": unigram,
    }
    tokenizer = tokenizers[kind]()
    ids = tokenizer.encode("the cat and the dog", add_special_tokens=False)
    assert len(ids) > 2
    texts = TokenTexts(tokenizer)
    said: list[Token] = []
    for token_id in ids:
        piece = TextChunk("", [token_id], logprobs=[-1.0], top_logprobs=[((ids[-1], -2.0),)])
        said += texts.of(piece)
    assert "".join(token.text for token in said) == tokenizer.decode(ids)
    assert len({token.top[0].text for token in said[1:]}) == 1


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (PROMPT, {"do_sample": True, "temperature": -1.0}, "temperature"),
    (PROMPT, {"do_sample": True, "top_k": -1}, "top_k"),
    (PROMPT, {"repetition_penalty": 0.0}, "penalty"),
    (PROMPT, {"max_new_tokens": 0}, "max_new_tokens"),
    (PROMPT, {"temprature": 1.0}, "temprature"),
    (PROMPT, {"num_beams": 2}, "num_beams"),
    (
        [{"role": "user", "content": "Hi"}],
        {
            "chat_template_kwargs": {
                "chat_template": "{{ raise_exception('roles must alternate') }}"
            }
        },
        "roles must alternate",
    ),
]


@pytest.mark.parametrize("format", ["text", "sse"])
async def test_what_the_model_refuses_is_a_400_of_a_route(format: Any) -> None:
    async def say(request: Request) -> Response:
        prompt, arguments, _ = REFUSED[int(request.query_params["number"])]
        arguments = {"max_new_tokens": 3, **arguments}
        return TextStreamResponse(lambda: engine.stream_text(prompt, **arguments), format)

    async with open_engine(*demo()) as engine:
        app = Starlette(routes=[Route("/", say)])
        async with serving(app) as url, client_of(url) as client:
            for number, (_, _, message) in enumerate(REFUSED):
                response = await client.get("/", params={"number": number})
                assert (response.status_code, message in response.text) == (400, True)
