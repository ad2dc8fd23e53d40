"""What guards a server: the names it goes by, whose pages may use it, when to come again."""

from __future__ import annotations

import re
from typing import Any, cast

import anyio
import httpx
import pytest
from anyio import create_task_group

from anystreamer import EngineBusy, open_engine
from anystreamer._serving import validate_origins
from anystreamer.server import create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.serving import client_of, error_of, serving

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ORIGIN = "https://chat.example"
OTHER = "https://other.example"


async def ask_with(
    headers: dict[str, str], method: str = "POST", **kwargs: object
) -> httpx.Response:
    model = ScriptedModel(["a"])
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine, **kwargs)  # type: ignore[arg-type]
        async with serving(app) as url, client_of(url) as client:
            body = {"prompt": "Hi"} if method == "POST" else None
            return await client.request(method, TEXT, json=body, headers=headers)


PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


async def test_pages_of_other_sites_may_not_use_it() -> None:
    assert (await ask_with(PREFLIGHT, "OPTIONS")).status_code == 405
    response = await ask_with({"origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_pages_of_sites_that_are_named_may() -> None:
    response = await ask_with(PREFLIGHT, "OPTIONS", allow_origins=[ORIGIN], api_key="key")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers
    other = {**PREFLIGHT, "origin": OTHER}
    assert (await ask_with(other, "OPTIONS", allow_origins=[ORIGIN])).status_code == 400
    for key, status in (("key", 200), ("other", 401)):  # and are told of errors, too
        headers = {"origin": ORIGIN, "authorization": f"Bearer {key}"}
        response = await ask_with(headers, allow_origins=[ORIGIN], api_key="key")
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "retry-after" in response.headers["access-control-expose-headers"]


CLIENTS = (
    "authorization,content-type,openai-organization,traceparent,x-request-id,x-stainless-arch,"
    "x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,"
    "x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)


@pytest.mark.parametrize("origin", [ORIGIN, "null"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_what_a_browser_asks_first_is_granted(method: str, origin: str) -> None:
    """For the headers of the official client, and from the Internet to loopback."""
    preflight = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": CLIENTS,
        "access-control-request-private-network": "true",
    }
    granted = "access-control-allow-"
    for origins in ([ORIGIN, "null"], ["*"]):
        response = await ask_with(preflight, "OPTIONS", allow_origins=origins, api_key="key")
        assert response.status_code == 200
        assert response.headers[f"{granted}origin"] in (origin, "*")
        assert method in response.headers[f"{granted}methods"]
        assert response.headers[f"{granted}headers"] == CLIENTS
        assert response.headers[f"{granted}private-network"] == "true"
        assert "Origin" in response.headers["vary"]


async def test_pages_can_read_each_error() -> None:
    model = ScriptedModel(["a"])
    headers = {"origin": ORIGIN, "authorization": "Bearer key"}
    statuses: list[int] = []

    async def refused(method: str, path: str, **request: Any) -> None:
        response = await client.request(method, path, **request)
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in response.headers
        assert "Origin" in response.headers["vary"]
        error_of(response)
        statuses.append(response.status_code)

    def fail() -> Any:
        raise OSError("a secret")

    async with open_engine(model, model.tokenizer) as engine:
        guards: Any = {"api_key": "key", "allow_origins": [ORIGIN], "allowed_hosts": ["server"]}
        app = create_app(engine, max_body_bytes=100, **guards)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers)
        await refused("POST", TEXT, json={})
        await refused("GET", "/v1/models", headers={"host": "attacker.example"})
        await refused("GET", "/v1/models", headers={"authorization": "Bearer other"})
        await refused("GET", "/v1/models/other")
        await refused("GET", "/nothing")
        await refused("GET", TEXT)
        await refused("POST", TEXT, json={"prompt": "Hi" * 100})
        await refused("POST", TEXT, content=b"{}")
    await refused("POST", TEXT, json={"prompt": "Hi"})  # of an engine that is closed
    engine.statistics = fail  # type: ignore[method-assign]
    await refused("GET", "/metrics")
    await client.aclose()
    assert statuses == [400, 400, 401, 404, 404, 405, 413, 415, 503, 500]


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "null", "http://localhost:3000", "http://[::1]:8080", "https://a.example:80"),
        *("chrome-extension://abc", "app://obsidian.md", "tauri://localhost"),
    ],
)
def test_what_browsers_send_can_be_allowed(origin: str) -> None:
    validate_origins([origin])


@pytest.mark.parametrize(
    "origin",
    [
        *("", "a.example", "https://a.example/", "https://A.example", "https://a.example:443"),
        *("https://*.a.example", "https://a.example/page", "https://u@a.example", "https://é.fr"),
    ],
)
def test_what_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match=r"allow_origins: no browser sends .*https://example\.org"):
        create_app(cast(Any, object()), allow_origins=[ORIGIN, origin])


COUNTS = ["max_body_bytes", "default_max_tokens", "max_tokens_limit", "context_length"]
COUNTS += ["max_unsent_tokens", "max_unsent_bytes"]


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        *((name, 0, ValueError, "at least 1") for name in COUNTS),
        *((name, value, TypeError, "a whole number") for name in COUNTS for value in (1.5, "5")),
        *((name, 0, ValueError, "more than 0") for name in ("keep_alive", "send_timeout")),
        *((name, "5", TypeError, "of seconds") for name in ("keep_alive", "send_timeout")),
    ],
)
def test_limits_that_cannot_work_are_refused_at_once(
    name: str, value: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{name} must be .*{words}"):
        create_app(cast(Any, object()), **{name: value})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("attacker.example", 400),
        ("attacker.example:8000", 400),
        ("localhost.attacker.example", 400),
        ("www.localhost", 400),
    ],
)
async def test_a_name_that_is_not_its_own_is_refused(host: str, status: int) -> None:
    names = ["localhost", "[::1]"]
    response = await ask_with({"host": host}, allowed_hosts=names)
    assert response.status_code == status


async def test_without_names_it_does_not_look() -> None:
    assert (await ask_with({"host": "anybody.example"})).status_code == 200


@pytest.mark.parametrize("name", ["allow_origins", "allowed_hosts"])
async def test_one_name_is_no_list(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        await ask_with({}, **{name: ORIGIN})


@pytest.mark.parametrize(
    "name",
    ["https://a.org", "a.org:8000", "a.org/path", "a.*", "*a.org", "", "::1", "a b"],
)
async def test_a_name_that_no_request_can_have_is_refused(name: str) -> None:
    """Such a server would refuse all, with the message of another mistake."""
    right = ["a.org", "*.a.org", "*", "localhost", "10.0.0.1", "[::1]", "my_host"]
    model = ScriptedModel(["a"])
    async with open_engine(model, model.tokenizer) as engine:
        create_app(engine, allowed_hosts=right)
        with pytest.raises(ValueError, match=f"^allowed_hosts: {re.escape(repr(name))} is not"):
            create_app(engine, allowed_hosts=[*right, name])


async def test_when_to_come_again_is_how_long_the_line_takes() -> None:
    gate = Gate()
    model = ScriptedModel([0.4, "a", gate, "b"])
    async with open_engine(model, model.tokenizer, max_waiting=2) as engine:

        async def ask(most: int) -> None:
            async with engine.stream_text("Hi", max_new_tokens=most) as stream:
                await stream.read()

        async def refused() -> EngineBusy:
            with pytest.raises(EngineBusy) as raised:
                async with engine.stream_text("Hi"):
                    pass
            return raised.value

        await ask(1)  # more than 0.4 s
        async with serving(create_app(engine)) as url, client_of(url) as client:
            async with create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask, 2)
                await gate.reached()
                await anyio.wait_all_tasks_blocked()
                busy = await refused()
                assert busy.waiting == 2
                assert busy.retry_after is not None
                # The one that runs goes first, then two; nobody knows how far it is.
                assert 3 * 0.4 < busy.retry_after < 60
                response = await client.post(TEXT, json={"prompt": "Hi"})
                assert response.status_code == 503
                assert 2 <= int(response.headers["retry-after"]) <= 60
                gate.open()


async def test_an_engine_that_knows_nothing_yet_says_so() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with open_engine(model, model.tokenizer, max_waiting=0) as engine:
        async with engine.stream_text("Hi"):
            await gate.reached()
            with pytest.raises(EngineBusy) as raised:
                async with engine.stream_text("Hi"):
                    pass
            gate.open()
    assert raised.value.retry_after is None


@pytest.mark.parametrize(("seconds", "told"), [(None, "1"), (0.2, "1"), (1.5, "2"), (10**6, "60")])
def test_when_to_come_again_is_sensible(seconds: float | None, told: str) -> None:
    from anystreamer.server._errors import engine_error

    error = engine_error(EngineBusy(3, seconds))
    assert error is not None
    assert (error.status, error.headers) == (503, {"retry-after": told})
