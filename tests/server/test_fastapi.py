"""The edge in somebody's FastAPI application: its lifespan, its routes, its middleware, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from sniffio import current_async_library

from anystreamer import Engine, open_engine
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, client_of, data_of, events_of, serving

pytestmark = [
    # uvicorn logs the cancellations that it makes; nothing else may be complained of.
    LEFT_GENERATORS,
]

ENDLESS = ["word "] * 20_000
TEXT = "/llm/v1/completions"


class Ask(BaseModel):
    prompt: str


def application(
    model: ScriptedModel, max_waiting: int | None = None, keep_alive: float = 15.0
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_engine(model, model.tokenizer, max_waiting=max_waiting) as engine:
            app.state.engine = engine
            app.mount("/llm", create_app(engine, keep_alive=keep_alive))
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/story")
    async def story(ask: Ask, request: Request) -> TextStreamResponse:
        return TextStreamResponse(request.app.state.engine.stream_text(ask.prompt))

    @app.get("/events")
    async def events(prompt: str, request: Request) -> TextStreamResponse:
        engine: Engine = request.app.state.engine
        return TextStreamResponse(engine.stream_text(prompt), format="sse", keep_alive=None)

    return app


@asynccontextmanager
async def running(
    app: FastAPI, server: str = "", grace: int = 1
) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app, server, grace=grace, lifespan="on") as url, client_of(url) as client:
        yield client


@pytest.mark.parametrize("server", SERVERS)
async def test_a_route_of_its_own_and_the_whole_beside_it(server: str) -> None:
    app = application(ScriptedModel(["one ", "two"]))
    async with running(app, server) as client:
        response = await client.post("/story", json={"prompt": "Hi"})
        assert (response.status_code, response.text) == (200, "one two")
        assert (await client.post("/story", json={})).status_code == 422  # FastAPI's own
        response = await client.get("/events", params={"prompt": "Hi"})
        *pieces, (kind, end) = events_of(response.text)
        assert "".join(json.loads(data)["text"] for _, data in pieces) == "one two"
        assert (kind, json.loads(end)["finish_reason"]) == ("end", "eos")
        answer = (await client.post(TEXT, json={"prompt": "Hi"})).json()
        assert answer["choices"][0]["text"] == "one two"
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert set(paths) == {"/story", "/events"}


@pytest.mark.parametrize("server", SERVERS)
async def test_a_busy_engine_is_a_real_503(server: str) -> None:
    gate = Gate()
    app = application(ScriptedModel([gate, "a"]), max_waiting=0)
    async with running(app, server) as client, create_task_group() as tasks:
        tasks.start_soon(partial(client.post, "/story", json={"prompt": "Hi"}))
        await gate.reached()
        for response in (
            await client.post("/story", json={"prompt": "Hi"}),
            await client.get("/events", params={"prompt": "Hi"}),
            await client.post(TEXT, json={"prompt": "Hi", "stream": True}),
        ):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
        gate.open()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("has_middleware", [False, True])
async def test_who_leaves_stops_the_model(server: str, has_middleware: bool) -> None:
    """Under a middleware, too, that puts tasks of its own between server and route."""
    model = ScriptedModel(ENDLESS, delay=0.001)
    app = application(model)
    if has_middleware:

        @app.middleware("http")
        async def pass_on(request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            response.headers["x-passed"] = "1"
            return response

    body = {"prompt": "Hi", "stream": True, "max_tokens": 10**6}
    async with running(app, server) as client:
        for ask in (
            partial(client.stream, "POST", "/story", json={"prompt": "Hi"}),
            partial(client.stream, "GET", "/events", params={"prompt": "Hi"}),
            partial(client.stream, "POST", TEXT, json=body),
        ):
            async with ask() as response:
                assert ("x-passed" in response.headers) == has_middleware
                await anext(response.aiter_text())
                assert model.is_generating
            await until(lambda: not (model.is_generating or app.state.engine.statistics().running))
    assert model.steps < 3 * len(ENDLESS)


# -- the server's end


@pytest.mark.parametrize("server", SERVERS)
async def test_streams_may_finish_while_the_server_shuts_down(server: str) -> None:
    gate = Gate()
    # Long enough for any server to see that it is to end.
    app = application(ScriptedModel(["one ", gate, 0.3, "two"]))
    texts: list[str] = []
    async with create_task_group() as tasks:
        # Of a connection that is kept, hypercorn on trio waits for all of its grace.
        async with client_of("http://unused", headers={"connection": "close"}) as client:
            async with serving(app, server, grace=20, lifespan="on") as url:

                async def read(kind: str, method: str, path: str, **kwargs: Any) -> None:
                    async with client.stream(method, url + path, **kwargs) as response:
                        text = ""
                        async for part in response.aiter_text():
                            text += part
                            if kind == "first":
                                first.set()
                    texts.append(text)

                first = anyio.Event()
                tasks.start_soon(partial(read, "first", "POST", "/story", json={"prompt": "Hi"}))
                await first.wait()
                body = {"prompt": "Hi", "stream": True}
                tasks.start_soon(partial(read, "", "POST", TEXT, json=body))
                await until(lambda: app.state.engine.statistics().waiting == 1)
                gate.open()
            with anyio.fail_after(PATIENCE):
                await until(lambda: len(texts) == 2)
    assert texts[0] == "one two"
    *_, last, done = data_of(texts[1])
    assert (last["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


@pytest.mark.parametrize("running", ["stream", "events", "text"])
@pytest.mark.parametrize("server", SERVERS)
async def test_what_does_not_finish_in_time_ends_with_an_error(server: str, running: str) -> None:
    """The running response in its own way. Those in the queue have no text yet: most get a 503."""
    if (
        server == "hypercorn"
        and sys.version_info >= (3, 12)
        and current_async_library() == "asyncio"
    ):
        pytest.skip("its grace begins once all connections have closed, from Python 3.12 on")
    model = ScriptedModel(ENDLESS, delay=0.001)
    app = application(model, keep_alive=0.1)  # who waits gets its head with the first comment
    stream = {"prompt": "Hi", "stream": True, "max_tokens": 10**6}
    requests: dict[str, tuple[str, str, Any]] = {
        "stream": ("POST", TEXT, stream),
        "whole": ("POST", TEXT, {**stream, "stream": False}),
        "events": ("GET", "/events?prompt=Hi", None),
        "text": ("POST", "/story", {"prompt": "Hi"}),
    }
    answers: dict[str, tuple[int, str]] = {}
    has_head: set[str] = set()
    begun = anyio.Event()
    async with create_task_group() as tasks:
        async with client_of("http://unused") as client:
            async with serving(app, server, grace=0, lifespan="on") as url:

                async def ask(name: str) -> None:
                    method, path, body = requests[name]
                    async with client.stream(method, url + path, json=body) as response:
                        has_head.add(name)
                        text = ""
                        try:
                            async for part in response.aiter_text():
                                text += part
                                if name == running:
                                    begun.set()
                        except httpx.RemoteProtocolError:
                            text = "cut"
                    answers[name] = (response.status_code, text)

                tasks.start_soon(ask, running)
                await begun.wait()
                for name in requests.keys() - {running}:
                    tasks.start_soon(ask, name)
                await until(lambda: app.state.engine.statistics().waiting == 3)
                await until(lambda: has_head == {running, "stream"})
            with anyio.fail_after(PATIENCE):
                await until(lambda: len(answers) == 4)
    message = "the server has ended this request"
    *_, error, done = data_of(answers["stream"][1])
    *_, error, done = data_of(answers["stream"][1])
    assert (answers["stream"][0], done) == (200, "[DONE]")
    assert error["error"]["message"] == message
    status, body = answers["whole"]
    assert (status, json.loads(body)["error"]["code"]) == (503, "engine_unavailable")
    if running == "events":
        assert events_of(answers["events"][1])[-1] == ("failure", json.dumps({"message": message}))
    else:
        assert answers["events"] == (503, message)
    # A text that was cut off must not look complete.
    assert answers["text"] == ((200, "cut") if running == "text" else (503, message))
    assert not model.is_generating


PROGRAM = """
from tests.server.test_fastapi import ENDLESS, application
from anystreamer.testing import ScriptedModel

app = application(ScriptedModel(ENDLESS, delay=0.001))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to catch")
def test_a_process_that_gets_sigterm_sends_its_clients_an_error(tmp_path: Path) -> None:
    """uvicorn's process goes right after the application's end, and its loop with it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "program:app", "--port", "0"),
            *("--timeout-graceful-shutdown", "0", "--app-dir", str(tmp_path)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stderr is not None
    with process:
        try:
            line = next(line for line in process.stderr if "running on" in line)
            url = next(word for word in line.split() if word.startswith("http://"))
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                text = ""
                body = {"prompt": "Hi", "stream": True, "max_tokens": 10**6}
                with client.stream("POST", TEXT, json=body) as response:
                    for part in response.iter_text():
                        if not text:
                            process.send_signal(signal.SIGTERM)
                        text += part
            *_, error, done = data_of(text)
            assert error["error"]["code"] == "engine_unavailable"
            assert done == "[DONE]"
            process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
