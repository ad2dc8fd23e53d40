"""The responses inside what frameworks put around a route: middlewares, handlers and the like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, cast

import httpx
import pytest
from anyio import create_task_group
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from litestar import Litestar, get
from litestar.config.compression import CompressionConfig
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp
from quart_trio import QuartTrio
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware

from anystreamer import Engine, EngineBusy, open_engine
from anystreamer.server import TextStreamResponse
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, client_of, serving

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    LEFT_GENERATORS,
]

ENDLESS = ["word "] * 20_000
Format = Literal["text", "sse"]


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-passed"] = "1"
        return response


def of_fastapi(engine: Engine, log: list[str]) -> FastAPI:
    """A route of an application in an application, with all that can be around it."""
    inner = FastAPI()

    async def connection() -> AsyncIterator[str]:
        log.append("opened")
        try:
            yield "connection"
        finally:
            log.append("closed")

    @inner.get("/{format}")
    async def say(
        format: Format, tasks: BackgroundTasks, connection: str = Depends(connection)
    ) -> TextStreamResponse:
        tasks.add_task(log.append, "task")
        return TextStreamResponse(lambda: engine.stream_text("Hi"), format)

    @inner.exception_handler(OSError)
    async def handle(request: Request, exc: Exception) -> Response:
        return Response(f"handled: {exc}", 507)

    outer = FastAPI()
    outer.mount("/inner", inner)
    outer.add_middleware(Passing)
    outer.add_middleware(GZipMiddleware, minimum_size=1, compresslevel=1)
    outer.add_middleware(Passing)
    return outer


def of_litestar(engine: Engine, log: list[str]) -> Litestar:
    async def connection() -> AsyncIterator[str]:
        log.append("opened")
        try:
            yield "connection"
        finally:
            log.append("closed")

    @get("/inner/{format:str}", dependencies={"connection": connection})
    async def say(format: FromPath[str], connection: NamedDependency[str]) -> ASGIApp:
        response = TextStreamResponse(lambda: engine.stream_text("Hi"), cast(Format, format))
        return cast(ASGIApp, response)

    def handle(request: Any, exc: Exception) -> Any:
        from litestar import Response as LitestarResponse

        return LitestarResponse(f"handled: {exc}", status_code=507, media_type="text/plain")

    return Litestar(
        [say],
        compression_config=CompressionConfig(backend="gzip", minimum_size=1),
        exception_handlers={OSError: handle},
        logging_config=None,
    )


FRAMEWORKS = {"FastAPI": of_fastapi, "Litestar": of_litestar}
# Litestar leaves a route's dependencies before it sends the response.
LOGS = {
    "FastAPI": ["opened", "text", "task", "closed"],
    "Litestar": ["opened", "closed", "text"],
}


@asynccontextmanager
async def running(
    framework: str, model: ScriptedModel, server: str
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine, list[str]]]:
    log: list[str] = []
    async with open_engine(model, model.tokenizer) as engine:
        app: Any = FRAMEWORKS[framework](engine, log)
        async with serving(app, server) as url, client_of(url) as client:
            yield client, engine, log


every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
on_every_server = pytest.mark.parametrize("server", SERVERS)


@every_framework
@on_every_server
async def test_text_goes_out_while_the_model_makes_it(framework: str, server: str) -> None:
    gate = Gate()
    async with running(framework, ScriptedModel(["one ", gate, "two"]), server) as (client, _, log):
        text = ""
        async with client.stream("GET", "/inner/text") as response:
            async for part in response.aiter_text():
                text += part
                if text == "one ":
                    log.append("text")
                    gate.open()
        assert text == "one two"
        await until(lambda: log == LOGS[framework])


@every_framework
@on_every_server
@pytest.mark.parametrize("format", ["text", "sse"])
async def test_who_leaves_stops_the_model(framework: str, server: str, format: Format) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with running(framework, model, server) as (client, engine, log):
        async with client.stream("GET", f"/inner/{format}") as response:
            await anext(response.aiter_text())
            assert model.is_generating
        await until(lambda: not (model.is_generating or engine.statistics().running))
        await until(lambda: "closed" in log)
    assert model.steps < len(ENDLESS)


@every_framework
@on_every_server
async def test_an_error_before_the_text_is_the_framework_s(framework: str, server: str) -> None:
    for format in ("text", "sse"):
        async with running(framework, ScriptedModel([OSError("disk")]), server) as (client, _, log):
            response = await client.get(f"/inner/{format}")
            assert (response.status_code, response.text) == (507, "handled: disk")
            await until(lambda: "closed" in log)


@every_framework
@on_every_server
async def test_an_error_after_text_is_an_event_or_cuts_the_text(
    framework: str, server: str
) -> None:
    model = ScriptedModel(["one ", OSError("a secret")])
    async with running(framework, model, server) as (client, _, log):
        events = (await client.get("/inner/sse")).text
        assert "event: failure" in events
        assert "secret" not in events
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/inner/text")
        await until(lambda: log.count("closed") == 2)


# -- Quart-Trio, whose route opens the stream, as its page has it


def of_quart_trio(engine: Engine) -> QuartTrio:
    app = QuartTrio("quart")

    @app.get("/more")
    async def more() -> AsyncIterator[str]:
        stack = AsyncExitStack()
        stream = await stack.enter_async_context(engine.stream_text("Hi"))

        async def chunks() -> AsyncIterator[str]:
            async with stack:
                async for chunk in stream:
                    yield chunk

        return chunks()

    @app.errorhandler(EngineBusy)
    async def busy(error: EngineBusy) -> tuple[str, int]:
        return str(error), 503

    return app


on_trio = pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {}), id="trio")])


@on_trio
async def test_quart_trio_answers_for_a_busy_engine() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with open_engine(model, model.tokenizer, max_waiting=0) as engine:
        async with serving(of_quart_trio(engine)) as url, client_of(url) as client:
            async with create_task_group() as tasks:
                tasks.start_soon(client.get, "/more")
                await gate.reached()
                assert (await client.get("/more")).status_code == 503
                gate.open()
            assert (await client.get("/more")).text == "a"


@on_trio
@pytest.mark.parametrize("when", ["at once", "after text"])
async def test_who_leaves_quart_trio_stops_the_model(when: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(of_quart_trio(engine)) as url, client_of(url) as client:
            for _ in range(5):
                async with client.stream("GET", "/more") as response:
                    if when == "after text":
                        await anext(response.aiter_text())
                await until(lambda: not (model.is_generating or engine.statistics().running))


@on_trio
async def test_quart_trio_cuts_off_a_text_whose_model_fails() -> None:
    model = ScriptedModel(["one ", OSError("a secret")])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(of_quart_trio(engine)) as url, client_of(url) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/more")
