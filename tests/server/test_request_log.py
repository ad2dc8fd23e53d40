"""The log of requests: one record for each, with what it used and how it ended."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from anystreamer import open_engine
from anystreamer._serving import LogLevel, RequestLogFormat, write_logs
from anystreamer.server import create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, client_of, serving

pytestmark = [
    LEFT_GENERATORS,
]

TEXT = "/v1/completions"
NAME = "anystreamer.requests"


def records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [each for each in caplog.records if each.name == NAME]


@pytest.mark.parametrize("server", SERVERS)
async def test_each_request_has_a_record(server: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    model = ScriptedModel(["one", " two"])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine), server) as url, client_of(url) as client:
            sent = {"x-request-id": "mine"}
            await client.post(TEXT, json={"prompt": "hi"}, headers=sent)
            await client.post(TEXT, json={"prompt": "hi", "stream": True, "max_tokens": 1})
            await client.post(TEXT, json={"prompt": "hi", "temperature": -1})
            await client.get("/health")
            await client.get("/no%0Awhere%20%25d")
            await until(lambda: len(records(caplog)) == 5)
    whole, streamed, refused, health, nowhere = records(caplog)
    assert (whole.method, whole.path, whole.status, whole.outcome) == ("POST", TEXT, 200, "200")
    assert (whole.prompt_tokens, whole.completion_tokens) == (2, 3)
    assert whole.request_id == "mine"
    assert 0 < whole.first_seconds <= whole.seconds
    assert whole.getMessage() == f"POST {TEXT} 200 2+3 tokens {whole.seconds} s mine"
    assert (streamed.status, streamed.completion_tokens) == (200, 1)
    assert len(streamed.request_id) == 32
    assert (refused.status, refused.outcome, refused.prompt_tokens) == (400, "400", 0)
    assert (health.path, health.status) == ("/health", 200)
    assert not hasattr(health, "outcome")
    assert (nowhere.path, nowhere.status) == (r"/no\nwhere %d", 404)
    assert "\n" not in nowhere.getMessage()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_client_that_leaves_is_in_the_log(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, NAME)
    gate = Gate()
    model = ScriptedModel(["one", gate, " two"])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine), server) as url, client_of(url) as client:
            body = {"prompt": "hi", "stream": True}
            async with client.stream("POST", TEXT, json=body) as response:
                await anext(response.aiter_text())
            gate.open()
            await until(lambda: records(caplog))
    (record,) = records(caplog)
    assert (record.status, record.outcome) == (200, "disconnected")
    assert " 200 disconnected 2+" in record.getMessage()


async def test_a_request_that_fails_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    model = ScriptedModel([OSError("no memory")])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            assert (await client.post(TEXT, json={"prompt": "hi"})).status_code == 500
            await until(lambda: records(caplog))
    (record,) = records(caplog)
    assert record.status == 500


async def test_it_costs_nothing_where_it_is_off(caplog: pytest.LogCaptureFixture) -> None:
    model = ScriptedModel(["one"])
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/health")).status_code == 200
    assert not records(caplog)


@pytest.fixture
def own_loggers() -> Any:
    names = ("anystreamer", NAME)
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.level, each.propagate, [*each.handlers]) for each in loggers]
    yield
    for each, (level, propagates, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.propagate, each.handlers = propagates, handlers


@pytest.mark.usefixtures("own_loggers")
@pytest.mark.parametrize("form", RequestLogFormat)
def test_it_is_written_as_text_or_json(
    form: RequestLogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    write_logs(LogLevel.WARNING, form)
    fields = {"method": "GET", "path": "/", "status": 200, "request_id": "mine", "seconds": 0.5}
    logging.getLogger(NAME).info("GET / 200", extra=fields)
    logging.getLogger("anystreamer").info("not this")
    logging.getLogger("anystreamer").warning("but this")
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.endswith("WARNING anystreamer: but this")
    if form is RequestLogFormat.OFF:
        assert not lines
    elif form is RequestLogFormat.TEXT:
        assert lines[0].endswith("INFO anystreamer.requests: GET / 200")
    else:
        written = json.loads(lines[0])
        assert written.pop("time") > 0
        assert written == fields
