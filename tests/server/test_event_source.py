"""Pages that listen with ``EventSource``, which connects again whenever a response ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from anyio import create_task_group
from playwright.async_api import Browser
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from anystreamer import open_engine
from anystreamer.server import TextStreamResponse
from anystreamer.testing import ScriptedModel

from ..helpers.chromium import launched, opened
from ..helpers.scripted import until
from ..helpers.serving import SERVERS, client_of, events_of, serving

# It does not close its connection, and has no other listener than those for our events.
CARELESS_PAGE = """
<!doctype html><title>page</title><p id=text></p><script>
const source = new EventSource("/events"), text = document.getElementById("text");
source.onmessage = event => text.append(JSON.parse(event.data).text);
source.addEventListener("failure", event => text.append(JSON.parse(event.data).message));
source.onerror = event => { if (event.data) text.append("taken for an error of its own"); };
</script>
"""


@asynccontextmanager
async def site(
    model: ScriptedModel, server: str = "", format: Any = "sse"
) -> AsyncIterator[tuple[str, list[str | None]]]:
    """The address of a page and its events, and the ``Last-Event-ID`` of each request for them."""
    asked: list[str | None] = []

    async def events(request: Request) -> Response:
        asked.append(request.headers.get("last-event-id"))
        return TextStreamResponse(lambda: engine.stream_text("Hi"), format)

    async def page(request: Request) -> Response:
        return HTMLResponse(CARELESS_PAGE)

    async with open_engine(model, model.tokenizer) as engine:
        app = Starlette(routes=[Route("/", page), Route("/events", events)])
        async with serving(app, server) as url:
            yield url, asked


def last_id(response: httpx.Response) -> str:
    (line,) = (each for each in response.text.splitlines() if each.startswith("id:"))
    return line.removeprefix("id:").strip()


@pytest.mark.parametrize("server", SERVERS)
async def test_who_comes_back_after_the_end_gets_nothing_more(server: str) -> None:
    scripts: list[tuple[Any, str]] = [(["a"], "end"), (["a", OSError("a secret")], "failure")]
    for script, kind in scripts:
        model = ScriptedModel(script)
        async with site(model, server) as (url, _), client_of(url) as client:
            first = await client.get("/events")
            assert [name for name, _ in events_of(first.text)] == ["message", kind]
            again = await client.get("/events", headers={"last-event-id": last_id(first)})
            assert (again.status_code, again.content) == (204, b"")
            assert len(model.calls) == 1


async def test_an_id_of_another_s_changes_nothing() -> None:
    model = ScriptedModel(["a"])
    async with site(model) as (url, _), client_of(url) as client:
        for headers in ({}, {"last-event-id": "7"}, {"last-event-id": ""}):
            assert (await client.get("/events", headers=headers)).status_code == 200
        end = last_id(await client.get("/events"))
    assert len(model.calls) == 4
    async with site(model, format="text") as (url, _), client_of(url) as client:
        response = await client.get("/events", headers={"last-event-id": end})
        assert response.text == "a"


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")])
async def test_a_page_that_does_not_close_generates_once() -> None:
    """In Chromium: it comes back after some seconds, and then gives up."""
    scripts: list[tuple[Any, str]] = [
        (["one ", "two"], "one two"),
        (["one ", OSError("a secret")], "one the model failed"),
    ]
    async with launched() as browser, create_task_group() as tasks:
        for script, text in scripts:
            tasks.start_soon(check_that_it_generates_once, browser, script, text)


async def check_that_it_generates_once(browser: Browser, script: Any, text: str) -> None:
    model = ScriptedModel(script)
    async with site(model) as (url, asked):
        async with opened(browser, url, expected=("404",)) as page:
            await until(lambda: len(asked) == 2)
            await page.wait_for_function("source.readyState === EventSource.CLOSED")
            assert await page.inner_text("#text") == text
    assert asked[0] is None
    assert asked[1]
    assert len(model.calls) == 1
