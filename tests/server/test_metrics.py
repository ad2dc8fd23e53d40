"""Metrics: what they say of requests, of answers, and of what serves them."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import anyio
import openai
import pytest
from anyio import create_task_group

from anystreamer import Timeouts, open_engine
from anystreamer.cli.connection_limits import ConnectionLimits
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, client_of, edge, limited_serving, serving
from .test_server import CHAT, ENDLESS, MESSAGES, TEXT

pytestmark = [
    LEFT_GENERATORS,
]

REQUESTS = 'anystreamer_http_requests_total{endpoint="%s",outcome="%s"}'


def value_of(metrics: str, series: str) -> float:
    """The value of a series, such as ``name{label="value"}``; 0 if there is none."""
    found = [line.rpartition(" ") for line in metrics.splitlines() if line.startswith(series + " ")]
    return float(found[0][2]) if found else 0.0


async def test_metrics_say_how_answers_ended_and_how_long_they_were() -> None:
    async with edge(ScriptedModel(["a"] * 9)) as (client, _):
        await client.post(TEXT, json={"prompt": "Hello"})
        await client.post(TEXT, json={"prompt": "Hi", "max_tokens": 3, "n": 2})
        await client.post(CHAT, json={"messages": MESSAGES, "stop": "aaa", "stream": True})
        metrics = (await client.get("/metrics")).text
    answers = 'anystreamer_http_answers_total{finish_reason="%s"}'
    assert value_of(metrics, answers % "eos") == 1
    assert value_of(metrics, answers % "length") == 2
    assert value_of(metrics, answers % "stop_string") == 1
    assert value_of(metrics, 'anystreamer_http_answer_tokens_bucket{le="2.0"}') == 0
    assert value_of(metrics, 'anystreamer_http_answer_tokens_bucket{le="5.0"}') == 3
    assert value_of(metrics, 'anystreamer_http_answer_tokens_bucket{le="10.0"}') == 4
    assert value_of(metrics, 'anystreamer_http_prompt_tokens_bucket{le="2.0"}') == 2
    assert value_of(metrics, "anystreamer_http_prompt_tokens_count") == 4
    assert value_of(metrics, "anystreamer_prefill_seconds_count") == 4


async def test_metrics_say_what_is_served_and_within_which_limits() -> None:
    timeout = Timeouts(queued=20, total=1000)
    model = ScriptedModel(["a"])
    async with edge(
        model, max_waiting=7, timeout=timeout, max_tokens_limit=99, context_length=500
    ) as (client, _):
        metrics = (await client.get("/metrics")).text
    assert (
        'anystreamer_model_info{engine="SequentialEngine",model_name="anystreamer"} 1.0' in metrics
    )
    assert re.search(r'^anystreamer_build_info\{.*anystreamer="[0-9.]*".* 1.0$', metrics, re.M)
    assert 'torch="' in metrics
    for name, value in {
        "max_running": 1,
        "max_waiting": 7,
        "max_tokens": 99,
        "default_max_tokens": 1024,
        "context_length": 500,
        "max_body_bytes": 2**20,
        "timeout_queued": 20,
        "timeout_total": 1000,
    }.items():
        assert value_of(metrics, f'anystreamer_limit{{limit="{name}"}}') == value, name
    assert "timeout_between_tokens" not in metrics
    assert value_of(metrics, "process_resident_memory_bytes") > 2**20
    assert value_of(metrics, "process_open_fds") > 2
    assert "python_info{" in metrics
    # A time as long as the timeout is not beyond the last bound.
    for name in ("queued", "prefill", "first_token", "total"):
        bounds = re.findall(rf'anystreamer_{name}_seconds_bucket{{le="([0-9.]+)"}}', metrics)
        assert float(bounds[-1]) >= 1000


async def test_a_request_that_is_refused_counts_as_refused_only() -> None:
    refused = {
        "too long": (TEXT, {"prompt": "x" * 30}),
        "no room": (TEXT, {"prompt": "x" * 15, "max_tokens": 6}),
        "not known": (CHAT, {"nothing": 1}),
        "not served": (CHAT, {"messages": MESSAGES, "model": "other"}),
    }
    async with edge(ScriptedModel(["a"]), context_length=20) as (client, engine):
        for number, (path, body) in enumerate(refused.values(), 1):
            assert (await client.post(path, json=body)).status_code in (400, 404)
            await until(lambda: not (engine.statistics().running or engine.statistics().waiting))
            metrics = (await client.get("/metrics")).text
            outcomes = re.findall(r"anystreamer_http_requests_total\{.*\} (.*)", metrics)
            assert sum(map(float, outcomes)) == number
            assert "finish_reason" not in metrics
            assert value_of(metrics, 'anystreamer_http_tokens_total{kind="prompt"}') == 0
            assert value_of(metrics, "anystreamer_http_prompt_tokens_count") == 0
            assert not re.search(r"anystreamer_http_open_requests\{.*\} [^0]", metrics)


async def test_of_several_answers_that_are_refused_none_counts() -> None:
    """Though the first of them had begun."""
    async with edge(ScriptedModel(ENDLESS, delay=0.001), max_waiting=1) as (client, engine):
        body = {"prompt": "Hi", "max_tokens": 10**6, "n": 3}
        assert (await client.post(TEXT, json=body)).status_code == 503
        await until(lambda: not engine.statistics().running)
        metrics = (await client.get("/metrics")).text
    assert value_of(metrics, REQUESTS % ("completions", "503")) == 1
    assert value_of(metrics, 'anystreamer_http_tokens_total{kind="prompt"}') == 0
    assert value_of(metrics, "anystreamer_http_prompt_tokens_count") == 0
    assert "finish_reason" not in metrics


async def test_what_a_remote_server_refuses_has_not_ended() -> None:
    async with edge(ScriptedModel(["a"]), context_length=20) as (client, _):
        async with remote_engine(str(client.base_url)) as engine:
            with pytest.raises(openai.BadRequestError):
                async with engine.stream_text("x" * 30):
                    pass
            assert engine.statistics().total.count == 0
            async with engine.stream_text("x") as stream:
                await stream.read()
            assert engine.statistics().total.count == 1
    async with remote_engine("http://127.0.0.1:9") as engine:  # which nobody serves
        with pytest.raises(openai.APIConnectionError):
            async with engine.stream_text("x"):
                pass
        assert engine.statistics().total.count == 1


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_has_cancelled_its_answer(server: str, stream: bool) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    answer = 'anystreamer_http_answers_total{finish_reason="%s"}'
    is_open = 'anystreamer_http_open_requests{endpoint="completions"}'
    async with edge(model, server=server) as (client, _):

        async def metrics() -> str:
            return (await client.get("/metrics")).text

        async with create_task_group() as leaving:
            body = {"prompt": "Hi", "stream": stream, "max_tokens": 10**6}
            leaving.start_soon(partial(client.post, TEXT, json=body))
            await until(lambda: model.steps > 3)
            assert value_of(await metrics(), is_open) == 1
            leaving.cancel_scope.cancel()
        while value_of(now := await metrics(), is_open):
            pass
    assert value_of(now, answer % "cancelled") == 1
    assert value_of(now, answer % "error") == 0
    outcomes = re.findall(r'http_requests_total\{.*outcome="(.*)"\} 1.0', now)
    assert outcomes == ["disconnected"]


async def test_a_request_that_is_cancelled_while_it_is_read_has_been_left() -> None:
    """Ray Serve tells in this way that a client has disconnected."""
    model = ScriptedModel(["a"])
    reading = anyio.Event()

    async def receive() -> Any:
        reading.set()
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": TEXT,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine)
        async with create_task_group() as tasks:
            tasks.start_soon(app, scope, receive, send)
            await reading.wait()
            tasks.cancel_scope.cancel()
    value = app.state.metrics.get_sample_value
    left = {"endpoint": "completions", "outcome": "disconnected"}
    assert value("anystreamer_http_requests_total", left) == 1
    assert value("anystreamer_http_open_requests", {"endpoint": "completions"}) == 0


@pytest.mark.parametrize("server", SERVERS)
async def test_metrics_have_the_connections_of_the_server(server: str) -> None:
    model = ScriptedModel(["a"])
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine)
        limits = ConnectionLimits(max_connections=5)
        async with (
            limited_serving(app, server, limits) as url,
            client_of(url) as first,
            client_of(url) as second,
        ):
            for client, count in ((first, 1), (second, 2)):
                metrics = (await client.get("/metrics")).text
                assert value_of(metrics, "anystreamer_open_connections") == count
                assert value_of(metrics, 'anystreamer_limit{limit="max_connections"}') == 5
        async with serving(app, server) as url, client_of(url) as client:
            # Of another server, nothing is known. (Not what was known of the one before.)
            assert "anystreamer_open_connections" not in (await client.get("/metrics")).text
