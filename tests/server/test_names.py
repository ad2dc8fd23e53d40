"""The names of a model and of requests, and the host names that a server goes by."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from anyio import to_thread

from anystreamer import open_engine
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.serving import SERVERS, client_of, edge, error_of, official, serving
from .test_server import CHAT, MESSAGES, TEXT

ID = "x-request-id"


@asynccontextmanager
async def served(server: str = "", **kwargs: Any) -> AsyncIterator[str]:
    model = ScriptedModel(["one ", "two"])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine, **kwargs), server) as url:
            yield url


# -- the model


async def test_a_model_has_a_name_and_aliases() -> None:
    async with served(model_name="org/main", aliases=["small", "org/main"]) as url:
        async with client_of(url) as client, official(url) as official_client:
            for name in ("org/main", "small", None):
                body = {"messages": MESSAGES, "model": name}
                for stream in (False, True):
                    response = await client.post(CHAT, json={**body, "stream": stream})
                    assert response.status_code == 200
                    assert '"model":"org/main"' in response.text
            for name in ("other", "dummy", "", "org"):
                with pytest.raises(openai.NotFoundError, match="'org/main', 'small'") as raised:
                    await official_client.completions.create(model=name, prompt="Hi", stream=True)
                assert raised.value.code == "model_not_found"
                assert raised.value.param == "model"
            for path in ("/v1/models", "/v1/models/"):
                models = (await client.get(path)).json()
                assert [each["id"] for each in models["data"]] == ["org/main", "small"]
            for name in ("org/main", "small"):
                card = await official_client.models.retrieve(name)
                assert (card.id, card.object) == (name, "model")
            missing = await client.get("/v1/models/other")
            assert missing.status_code == 404
            assert error_of(missing)["code"] == "model_not_found"


async def test_the_default_takes_what_the_client_of_huggingface_hub_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client has an address and no name of a model."""
    hub = pytest.importorskip("huggingface_hub")
    # The package has no such attribute if transformers has imported the module before.
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the address is of this machine
    async with served(model_name="counter") as url:

        def ask() -> tuple[str | None, str]:
            client = hub.InferenceClient(base_url=f"{url}/v1", timeout=30)
            whole = client.chat_completion(MESSAGES, max_tokens=9)
            chunks = client.chat_completion(MESSAGES, max_tokens=9, stream=True)
            streamed = "".join(each.choices[0].delta.content or "" for each in chunks)
            return whole.choices[0].message.content, streamed

        assert await to_thread.run_sync(ask) == ("one two", "one two")
        async with client_of(url) as client:
            models = (await client.get("/v1/models")).json()["data"]
            assert [each["id"] for each in models] == ["counter"]
            response = await client.post(TEXT, json={"prompt": "Hi", "model": "other"})
            assert (
                error_of(response)["message"] == "the model 'other' does not exist: use 'counter'"
            )


async def test_without_aliases_only_its_own_name_is_taken() -> None:
    async with served(aliases=[]) as url, client_of(url) as client:
        for name, status in (("anystreamer", 200), ("dummy", 404)):
            response = await client.post(TEXT, json={"prompt": "Hi", "model": name})
            assert response.status_code == status


# -- the request


@pytest.mark.parametrize("server", SERVERS)
async def test_each_response_has_the_id_of_its_request(server: str) -> None:
    body: dict[str, Any] = {"prompt": "Hi"}
    hosts = ["127.0.0.1"]
    async with served(server, allowed_hosts=hosts, api_key="key") as url:
        async with client_of(url, headers={"authorization": "Bearer key"}) as client:
            responses = [
                await client.post(TEXT, json=body),
                await client.post(TEXT, json={**body, "stream": True}),
                await client.post(TEXT, json={}),
                await client.post(TEXT, json=body, headers={"authorization": ""}),
                await client.post(TEXT, json=body, headers={"host": "other.example"}),
                await client.get(TEXT),
                await client.get("/nothing"),
                await client.get("/v1/models"),
                await client.get("/health"),
                await client.get("/metrics"),
                await client.get("/"),
            ]
            codes = [response.status_code for response in responses]
            assert codes == [200, 200, 400, 401, 400, 405, 404, 200, 200, 200, 200]
            ids = [response.headers[ID] for response in responses]
            assert len(set(ids)) == len(ids)
            assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
            for response in responses:
                assert len(response.headers.get_list(ID)) == 1


@pytest.mark.parametrize("given", ["req-1", "a" * 128, "00-4bf92f3577b34da6-01", "a:b/c=d+e@f.g_h"])
async def test_an_id_of_the_client_s_is_taken_over(given: str) -> None:
    async with served() as url, client_of(url, headers={ID: given}) as client:
        for body in ({"prompt": "Hi"}, {"prompt": "Hi", "stream": True}, {}):
            assert (await client.post(TEXT, json=body)).headers[ID] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", 'a"b', "a;b", "é", "<b>", "a,b"])
async def test_an_id_that_is_not_sane_is_replaced(given: str) -> None:
    async with served() as url, client_of(url) as client:
        headers = [(ID.encode(), given.encode())]
        response = await client.post(TEXT, json={"prompt": "Hi"}, headers=headers)
    assert response.status_code == 200
    assert re.fullmatch("[0-9a-f]{32}", response.headers[ID])


async def test_a_server_that_fails_says_which_request_it_was() -> None:
    """Starlette makes that response outside of all middleware."""
    async with edge(ScriptedModel(["a"])) as (_, engine):
        app = create_app(engine)

        def fail() -> Any:
            raise OSError("a secret")

        engine.statistics = fail  # type: ignore[method-assign]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            response = await client.get("/metrics", headers={ID: "mine"})
    assert response.status_code == 500
    assert response.headers[ID] == "mine"
    assert error_of(response)["message"] == "the server failed"


# -- the host


async def test_a_foreign_host_is_told_how_to_be_allowed() -> None:
    async with served(allowed_hosts=["localhost", "[::1]"]) as url, client_of(url) as client:
        for host, name in (
            ("chat.example", "chat.example"),
            ("chat.example:8000", "chat.example"),
            ("[::2]", "[::2]"),
            ("[::2]:8000", "[::2]"),
        ):
            response = await client.post(TEXT, json={"prompt": "Hi"}, headers={"host": host})
            assert response.status_code == 400
            error = error_of(response)
            assert f"--allow-host {name}, or" in error["message"]
            assert "allowed_hosts=" in error["message"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "host_not_allowed")
        response = await client.get("/v1/models", headers={"host": "localhost:1"})
        assert response.status_code == 200
