"""`TextStreamResponse`: its formats, its errors, and a client that disconnects. No torch."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from anyio import create_task_group
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from anystreamer import Engine, EngineClosed, FinishReason, Timeouts, open_engine
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, client_of, events_of, serving

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    LEFT_GENERATORS,
]

ENDLESS = ["word "] * 20_000


@asynccontextmanager
async def route(
    model: ScriptedModel, server: str = "", max_waiting: int | None = None, **kwargs: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    async def say(request: Request) -> Response:
        prompt = request.query_params.get("prompt", "Hi")
        return TextStreamResponse(engine.stream_text(prompt, stop="STOP"), **kwargs)

    async with open_engine(model, model.tokenizer, max_waiting=max_waiting) as engine:
        app = Starlette(routes=[Route("/", say), Mount("/llm", create_app(engine))])
        async with serving(app, server) as url, client_of(url) as client:
            yield client, engine


@pytest.mark.parametrize("server", SERVERS)
async def test_a_stream_as_the_text_of_a_response(server: str) -> None:
    model = ScriptedModel(["ein ", "Täg", "\r\n", "STOP"])
    async with route(model, server, headers={"x-mine": "1"}) as (client, _):
        response = await client.get("/")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["x-mine"] == "1"
        assert response.text == "ein Täg\r\n"
        calls = len(model.calls)
        assert (await client.head("/")).status_code == 200
        assert len(model.calls) == calls
        # The whole application, mounted beside it.
        answer = await client.post("/llm/v1/completions", json={"prompt": "Hi"})
        assert answer.json()["choices"][0]["text"] == "ein Täg\r\nSTOP"
        error = (await client.get("/llm/nothing")).json()["error"]
        assert error["type"] == "invalid_request_error"


async def test_a_stream_as_events() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "one\n\ndata: ", "two\r"])
    async with route(model, format="sse", keep_alive=0.01) as (client, _):
        text = ""
        async with client.stream("GET", "/") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for part in response.aiter_text():
                text += part
                if "keep-alive" in text:
                    gate.open()
    *said, end = [e for e in text.split("\n\n") if e and not e.startswith(":")]
    pieces = [json.loads(each.removeprefix("data: "))["text"] for each in said]
    assert "".join(pieces) == "one\n\ndata: two\r"
    name, last_id, data = end.split("\n")
    assert (name, last_id) == ("event: end", "id: anystreamer-end")
    assert json.loads(data.removeprefix("data: ")) == {
        "finish_reason": FinishReason.EOS,
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
    }


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("format", ["text", "sse"])
async def test_a_response_whose_client_leaves_stops_the_model(server: str, format: Any) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with route(model, server, format=format) as (client, engine):
        async with client.stream("GET", "/") as response:
            await anext(response.aiter_text())
            assert model.is_generating
        await until(lambda: not (model.is_generating or engine.statistics().running))
    assert model.steps < len(ENDLESS)


@pytest.mark.parametrize("server", SERVERS)
async def test_a_response_that_cannot_begin_says_so(server: str) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with route(model, server, max_waiting=0) as (client, _):
        async with create_task_group() as tasks:
            tasks.start_soon(client.get, "/")
            await gate.reached()
            response = await client.get("/")
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            gate.open()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_response_whose_model_fails(server: str) -> None:
    model = ScriptedModel(["one ", OSError("a secret")])
    async with route(model, server) as (client, _):
        with pytest.raises(httpx.RemoteProtocolError):  # cut: this is not all of it
            await client.get("/")
    async with route(model, server, format="sse") as (client, _):
        text = (await client.get("/")).text
        assert text.endswith(
            'event: failure\nid: anystreamer-end\ndata: {"message": "the model failed"}\n\n'
        )


# -- errors before the first text


@asynccontextmanager
async def answering(
    new_response: Callable[[Engine, dict[str, str]], Response],
    model: Any,
    tokenizer: Any,
    server: str = "",
    **kwargs: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """A client of a server whose only route makes its response of an engine and the query."""

    async def say(request: Request) -> Response:
        return new_response(engine, dict(request.query_params))

    async with open_engine(model, tokenizer, **kwargs) as engine:
        async with serving(Starlette(routes=[Route("/", say)]), server) as url:
            async with client_of(url) as client:
                yield client, engine


async def check(client: httpx.AsyncClient, status: int, message: str, **query: Any) -> None:
    """A refusal is plain text, also where events were wanted."""
    response = await client.get("/", params=query)
    assert (response.status_code, response.headers["content-type"]) == (
        status,
        "text/plain; charset=utf-8",
    )
    assert message in response.text


# What is refused when the stream is made, when its block is entered, and by generate() itself.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("", {}, "prompt is empty"),
    ("Hi", {"max_tokens": 5}, "use max_new_tokens="),
    ("Hi", {"num_beams": 2}, "num_beams=2"),
    ("Hi", {"stop": [""]}, "stop"),
    ("Hi", {"timeout": -1}, "timeout"),
    ("Hi", {"input_ids": [[1]]}, "given twice"),
    ("Hi", {"do_sample": True, "temperature": -1.0}, "temperature"),
    ("Hi", {"max_new_tokens": 0}, "max_new_tokens"),
    ("Hi", {"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("format", ["text", "sse"])
async def test_what_a_request_cannot_ask_is_a_400(server: str, format: Any) -> None:
    model = ScriptedModel(["a"])

    def response(engine: Engine, query: dict[str, str]) -> Response:
        prompt, arguments, _ = REFUSED[int(query["number"])]
        return TextStreamResponse(lambda: engine.stream_text(prompt, **arguments), format)

    async with answering(response, model, model.tokenizer, server) as (client, engine):
        for number, (_, _, message) in enumerate(REFUSED):
            await check(client, 400, message, number=number)
        await until(lambda: not engine.statistics().running)
    assert model.steps == 0


async def test_a_route_that_makes_the_stream_raises_what_is_refused_at_once() -> None:
    """The application's own handlers see it. The others are refused as with a function."""
    model = ScriptedModel(["a"])

    def response(engine: Engine, query: dict[str, str]) -> Response:
        if query["prompt"] == "Hi":
            return TextStreamResponse(engine.stream_text("Hi", max_new_tokens=0))
        with pytest.raises(ValueError, match="prompt is empty"):
            engine.stream_text(query["prompt"])
        return Response("refused", 422)

    async with answering(response, model, model.tokenizer) as (client, _):
        await check(client, 400, "max_new_tokens", prompt="Hi")
        assert (await client.get("/", params={"prompt": ""})).status_code == 422


@pytest.mark.parametrize("format", ["text", "sse"])
async def test_a_closed_engine_is_a_503(format: Any) -> None:
    model = ScriptedModel(["a"])
    async with open_engine(model, model.tokenizer) as closed:
        pass

    def response(engine: Engine, query: dict[str, str]) -> Response:
        return TextStreamResponse(lambda: closed.stream_text("Hi"), format)

    async with answering(response, model, model.tokenizer) as (client, _):
        await check(client, 503, "the engine has been closed")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("format", ["text", "sse"])
async def test_a_timeout_in_the_queue_is_a_504(server: str, format: Any) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])

    def response(engine: Engine, query: dict[str, str]) -> Response:
        return TextStreamResponse(
            lambda: engine.stream_text("Hi", timeout=Timeouts(queued=0.01)), format
        )

    async with answering(response, model, model.tokenizer, server) as (client, engine):
        async with engine.stream_text("Hi"):
            await gate.reached()
            await check(client, 504, "the generation took too long: queued")
            gate.open()


@pytest.mark.parametrize("server", SERVERS)
async def test_an_engine_that_is_closed_while_it_waits_is_a_503(server: str) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])

    def response(engine: Engine, query: dict[str, str]) -> Response:
        return TextStreamResponse(lambda: of_its_own.stream_text("Hi"))

    async def occupy(engine: Engine) -> None:
        with pytest.raises(EngineClosed):
            async with engine.stream_text("Hi") as stream:
                await stream.read()

    async def let_go_once_closed(engine: Any) -> None:
        await until(lambda: engine.state == "closed")
        gate.open()

    async with answering(response, model, model.tokenizer, server) as (client, _):
        async with create_task_group() as tasks:
            async with open_engine(model, model.tokenizer) as of_its_own:
                tasks.start_soon(occupy, of_its_own)
                await gate.reached()
                tasks.start_soon(check, client, 503, "the engine has been closed")
                await until(lambda: of_its_own.statistics().waiting)
                tasks.start_soon(let_go_once_closed, of_its_own)


@pytest.mark.parametrize("format", ["text", "sse"])
async def test_a_model_that_fails_before_its_first_text_is_a_500(format: Any) -> None:
    """It is raised in the application, as any error of a route is."""
    error = OSError("a secret")
    model = ScriptedModel([error])
    seen: list[Exception] = []

    async def handle(request: Request, exc: Exception) -> Response:
        seen.append(exc)
        return Response("sorry", 500)

    async def say(request: Request) -> Response:
        return TextStreamResponse(lambda: engine.stream_text("Hi"), format)

    async with open_engine(model, model.tokenizer) as engine:
        app = Starlette(routes=[Route("/", say)], exception_handlers={OSError: handle})
        async with serving(app) as url, client_of(url) as client:
            response = await client.get("/")
    assert (response.status_code, response.text) == (500, "sorry")
    assert seen == [error]


async def test_a_comment_keeps_a_response_in_the_queue_alive() -> None:
    """From then on the headers are out, and an error is an event: with the same message."""
    gate = Gate()
    model = ScriptedModel([gate, "a"])

    def response(engine: Engine, query: dict[str, str]) -> Response:
        return TextStreamResponse(
            lambda: engine.stream_text("Hi", max_new_tokens=0), "sse", keep_alive=0.01
        )

    async with answering(response, model, model.tokenizer) as (client, engine):
        async with engine.stream_text("Hi"):
            await gate.reached()
            async with client.stream("GET", "/") as answer:
                gate.open()
                assert answer.status_code == 200
                (kind, data) = events_of((await answer.aread()).decode())[-1]
    assert kind == "failure"
    assert "max_new_tokens" in json.loads(data)["message"]


def test_what_a_response_is_not_made_of() -> None:
    with pytest.raises(TypeError, match="before it is opened"):
        TextStreamResponse("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format"):
        TextStreamResponse(Starlette().router.lifespan_context(None), "xml")  # type: ignore[arg-type]


# -- what gives it no stream


async def an_async_function() -> Any:
    raise AssertionError


async def an_async_generator_function() -> AsyncIterator[str]:
    yield ""


@pytest.mark.parametrize("function", [an_async_function, an_async_generator_function])
def test_an_async_function_is_refused_at_once(function: Any) -> None:
    with pytest.raises(TypeError, match=f"engine_stream .* {function.__name__} is an async"):
        TextStreamResponse(function)


@pytest.mark.parametrize("returned", [an_async_function, an_async_generator_function, str])
async def test_a_function_that_returns_no_stream_is_an_error_of_the_application(
    returned: Any,
) -> None:
    """Not of the request, so no 400; and no warning of a coroutine that was never awaited."""

    async def say(request: Request) -> Response:
        return TextStreamResponse(lambda: returned())

    transport = httpx.ASGITransport(Starlette(routes=[Route("/", say)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with pytest.raises(
                RuntimeError, match=r"engine_stream must return engine\.stream_text"
            ):
                await client.get("/")
        gc.collect()
