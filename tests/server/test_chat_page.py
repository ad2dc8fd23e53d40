"""The chat page's files over HTTP: what a browser is told of them, and who may have them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from anystreamer import open_engine
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.serving import client_of, serving

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

PAGE = files("anystreamer.server").joinpath("page")


async def test_the_page_is_for_everybody_and_the_model_for_who_has_the_key() -> None:
    model = ScriptedModel(["Hi!"])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine, api_key="key")) as url, client_of(url) as client:
            page = await client.get("/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            names = set(re.findall(r'(?:href|src)="(page/[^"]*)"', page.text))
            assert names >= {"page/chat.css", "page/chat.js", "page/icon.svg"}
            scripts = {f"page/{each.name}" for each in PAGE.iterdir() if each.name.endswith(".js")}
            for name in sorted(names | scripts):
                response = await client.get(f"/{name}")
                assert response.status_code == 200
                assert response.content == PAGE.joinpath(name.removeprefix("page/")).read_bytes()
            assert (await client.get("/v1/models")).status_code == 401
    assert model.calls == []


async def test_browsers_keep_the_files_and_ask_whether_they_are_still_the_same() -> None:
    model = ScriptedModel([])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            for path in ("/", "/page/chat.js"):
                first = await client.get(path)
                assert first.headers["cache-control"] == "no-cache"
                assert first.headers["x-content-type-options"] == "nosniff"
                policy = first.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                tag = first.headers["etag"]
                for known in (tag, f"W/{tag}", f'"other", {tag}'):
                    again = await client.get(path, headers={"if-none-match": known})
                    assert (again.status_code, again.content) == (304, b"")
                    assert again.headers["etag"] == tag
                other = await client.get(path, headers={"if-none-match": '"other"'})
                assert other.content == first.content
                head = await client.head(path)
                assert head.content == b""
                assert head.headers["content-length"] == str(len(first.content))


async def test_it_can_be_left_out() -> None:
    model = ScriptedModel([])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine, page=False)) as url, client_of(url) as client:
            for path in ("/", "/page/chat.js"):
                assert (await client.get(path)).status_code == 404
            assert (await client.get("/health")).status_code == 200


def test_nothing_in_the_page_can_become_markup() -> None:
    """Text is put in as text, and no handler or style is written in line."""
    for file in PAGE.iterdir():
        source = file.read_text() if file.name.endswith(".js") else ""
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", source)
    markup = PAGE.joinpath("chat.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script>|https?:", markup)
