"""What guards a server: the names it goes by, whose pages may use it, when to come again."""

from __future__ import annotations

import re
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group

from anystreamer import EngineBusy, open_engine
from anystreamer.server import create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.serving import client_of, serving

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
    ("argument", "wrong", "right"),
    [
        (
            "allowed_hosts",
            ["https://a.org", "a.org:8000", "a.org/path", "a.*", "*a.org", "", "::1", "a b"],
            ["a.org", "*.a.org", "*", "localhost", "10.0.0.1", "[::1]", "my_host"],
        ),
        (
            "allow_origins",
            ["a.org", "https://a.org/", "https://a.org/path", "", "https://", "https://me@a.org"],
            ["https://a.org", "http://localhost:3000", "*", "null", "chrome-extension://abc"],
        ),
    ],
)
async def test_a_name_that_could_never_match_is_refused(
    argument: str, wrong: list[str], right: list[str]
) -> None:
    """It would be a server that refuses all, with the message of another mistake."""
    model = ScriptedModel(["a"])
    create: Any = create_app
    async with open_engine(model, model.tokenizer) as engine:
        for name in wrong:
            with pytest.raises(ValueError, match=f"^{argument}: {re.escape(repr(name))} is not"):
                create(engine, **{argument: [*right, name]})
        create(engine, **{argument: right})


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
