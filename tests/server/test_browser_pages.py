"""The pages of the documentation for browsers, in a real Chromium: each way to stop the model."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from anystreamer import demo
from anystreamer.testing import ScriptedModel

from ..helpers.chromium import launched, opened
from ..helpers.scripted import until
from ..helpers.serving import serving

pytestmark = pytest.mark.slow

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
WORDS = 10_000  # of 20 ms: no click comes too late


@pytest.fixture(scope="module", params=[pytest.param(("asyncio", {}), id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """playwright is for asyncio. What each loop does when a client leaves is tested elsewhere."""
    return request.param


@asynccontextmanager
async def browsing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Page, Any, ScriptedModel]]:
    """The page of an application of the documentation, its engine, and a model that goes on."""
    model = ScriptedModel(["word "] * WORDS, delay=0.02)
    monkeypatch.setattr(demo, "load_demo", lambda: (model, model.tokenizer))
    text = (HOW_TO / name).read_text("utf-8")
    [code] = re.findall(r'^```python title="app.py"\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code.replace("1_000", str(WORDS)), name, "exec", dont_inherit=True), names)
    async with launched() as browser, serving(names["app"], lifespan="on") as url:
        async with opened(browser, url, expected=("404",)) as page:
            yield page, names["app"].state.engine, model


@pytest.mark.parametrize("way", ["stop", "leave"])
@pytest.mark.parametrize(
    ("name", "button"),
    [("sse.md", "fetch"), ("sse.md", "EventSource"), ("websocket.md", "Ask")],
    ids=["fetch", "EventSource", "WebSocket"],
)
async def test_a_click_and_leaving_the_page_stop_the_model(
    name: str, button: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with browsing(name, monkeypatch) as (page, engine, model):
        await page.get_by_role("button", name=button, exact=True).click()
        await expect(page.locator("#answer")).to_contain_text("word word")
        assert engine.statistics().running == 1
        if way == "stop":
            await page.get_by_role("button", name="Stop", exact=True).click()
        else:
            await page.goto("about:blank")
        await until(lambda: not engine.statistics().running)
        assert model.steps < WORDS
        if way == "stop":
            answer = await page.locator("#answer").inner_text()
            assert set(answer.split()) == {"word"}  # no error
            if name == "websocket.md":
                await expect(page.locator("#end")).to_have_text("stopped")
