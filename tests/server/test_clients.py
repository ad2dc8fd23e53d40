"""Clients that are no libraries: curl as a process, and a parser of events as browsers have it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from anystreamer import Engine, open_engine
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, until
from ..helpers.serving import SERVERS, client_of, events_of, serving

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
# What could be taken for an end of line, of an event or of a stream.
NASTY = [
    "a\n\n",
    "data: b\r",
    "\n",
    ": c\r\n",
    "\u2028\u2029\x85",
    "\x0b\x0c",
    "event: end\n",
    "é🙂 ",
]


@asynccontextmanager
async def edge(
    model: ScriptedModel, server: str = "", **kwargs: Any
) -> AsyncIterator[tuple[str, Engine]]:
    async with open_engine(model, model.tokenizer, max_waiting=0) as engine:

        async def say(request: Request) -> Response:
            return TextStreamResponse(engine.stream_text("Hi"), request.path_params["format"])

        routes = [Route("/own/{format}", say), Mount("/", create_app(engine, **kwargs))]
        async with serving(Starlette(routes=routes), server) as url:
            yield url, engine


def curl_of(*arguments: str, body: object = None) -> list[str]:
    sent: list[str] = []
    if body is not None:
        sent = ["--header", "content-type: application/json", "--data", json.dumps(body)]
    return ["curl", "--silent", "--no-buffer", "--noproxy", "*", *sent, *arguments]


async def curl(*arguments: str, body: object = None) -> tuple[int, str]:
    """Its exit status, and what it printed."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(curl_of(*arguments, body=body), check=False)
    return done.returncode, done.stdout.decode()


@needs_curl
@pytest.mark.parametrize("server", SERVERS)
async def test_curl_streams_events_as_they_are_made(server: str) -> None:
    gate = Gate()
    async with edge(ScriptedModel(["one ", gate, "two"]), server) as (url, _):
        command = curl_of(url + CHAT, body={"messages": [MESSAGE], "stream": True})
        with anyio.fail_after(PATIENCE):
            async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                text, is_open = "", False
                async for part in process.stdout:
                    text += part.decode()
                    if "one" in text and not is_open:
                        assert "two" not in text
                        is_open = True
                        gate.open()
                assert await process.wait() == 0
    *events, done = events_of(text)
    assert done == ("message", "[DONE]")
    deltas = [json.loads(data)["choices"][0]["delta"] for _, data in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "one two"


@needs_curl
@pytest.mark.parametrize("server", SERVERS)
async def test_a_curl_that_is_ended_stops_the_model(server: str) -> None:
    model = ScriptedModel(["word "] * 20_000, delay=0.001)
    body = {"prompt": "Hi", "max_tokens": 10**6}
    async with edge(model, server) as (url, engine):
        for stream in (True, False):
            command = curl_of(url + TEXT, body={**body, "stream": stream})
            async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
                await until(lambda: model.is_generating)
                process.kill()
            await until(lambda: not (model.is_generating or engine.statistics().running))
    assert model.steps < 2 * 20_000


@needs_curl
@pytest.mark.parametrize("server", SERVERS)
async def test_curl_gets_a_message_that_says_what_is_wrong(server: str, tmp_path: Path) -> None:
    gate = Gate()
    kwargs: dict[str, Any] = {"api_key": "key", "max_body_bytes": 1024**2}
    files = ("--output", str(tmp_path / "body"), "--dump-header", str(tmp_path / "headers"))
    code = (*files, "--write-out", "%{http_code}")
    key = ("--header", "authorization: Bearer key")
    body = {"prompt": "Hi"}
    async with edge(ScriptedModel([gate, "a"]), server, **kwargs) as (url, _):
        assert await curl("--fail", url + "/v1/models") == (22, "")
        assert (await curl(*code, url + TEXT, body=body))[1] == "401"
        # It asks whether it may send so much, and waits for the answer.
        (tmp_path / "large").write_bytes(b" " * (3 * 1024**2))
        large = ("--header", "content-type: application/json", "--data-binary", "@large")
        # hypercorn lets it send by itself. Where it closes the connection meanwhile, the answer can
        # be lost: as always with TCP, if a side closes and bytes come that it has not read.
        status = "100"
        with anyio.fail_after(PATIENCE):
            while status == "100":
                done = await anyio.run_process(
                    curl_of(*code, *key, *large, url + TEXT), check=False, cwd=str(tmp_path)
                )
                status = done.stdout.decode()
                assert status == "413" or server == "hypercorn"
        assert status == "413"
        assert json.loads((tmp_path / "body").read_text())["error"]["code"] == "request_too_large"
        async with create_task_group() as tasks:
            tasks.start_soon(lambda: curl(*key, url + TEXT, body=body))
            await gate.reached()
            assert (await curl(*code, *key, url + TEXT, body=body))[1] == "503"
            assert "retry-after: 1" in (tmp_path / "headers").read_text().lower().splitlines()
            gate.open()


@needs_curl
@pytest.mark.parametrize("server", SERVERS)
async def test_curl_sees_that_a_text_was_cut(server: str) -> None:
    async with edge(ScriptedModel(["one ", OSError("a secret")]), server) as (url, _):
        status, text = await curl(url + "/own/text")
        assert status != 0
        assert text in ("", "one ")
        status, text = await curl(url + "/own/sse")
        assert (status, events_of(text)[-1][0]) == (0, "failure")


MESSAGE = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("server", SERVERS)
async def test_no_text_breaks_an_event(server: str) -> None:
    async with edge(ScriptedModel(NASTY), server) as (url, _), client_of(url) as client:
        *pieces, (kind, _) = events_of((await client.get("/own/sse")).text)
        assert kind == "end"
        assert all(kind == "message" for kind, _ in pieces)
        assert "".join(json.loads(data)["text"] for _, data in pieces) == "".join(NASTY)
        response = await client.post(TEXT, json={"prompt": "Hi", "stream": True})
        *events, done = events_of(response.text)
        assert done == ("message", "[DONE]")
        texts = [json.loads(data)["choices"][0]["text"] for _, data in events]
        assert "".join(texts) == "".join(NASTY)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("data: a\n\n", [("message", "a")]),
        ("\ufeffdata:a\r\n\r\n", [("message", "a")]),
        ("data: a\rdata:  b\r\r", [("message", "a\n b")]),
        (": a comment\n\nevent: end\ndata\ndata: c\n\n", [("end", "\nc")]),
        ("event: lost\n\ndata: a\n\n", [("message", "a")]),
        ("data: a\n\ndata: never dispatched\n", [("message", "a")]),
        ("data: a\n\ndata: b", [("message", "a")]),
        ("id: 1\nretry: 5\nother: x\ndata: a\n\n", [("message", "a")]),
    ],
)
def test_the_parser_is_whatwg_s(stream: str, events: list[tuple[str, str]]) -> None:
    """The examples of the standard, and its rules one by one."""
    assert events_of(stream) == events
