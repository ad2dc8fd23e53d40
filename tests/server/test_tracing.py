"""Traces: a client's is taken, each request has a span, and the log names the trace."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from anystreamer.testing import ScriptedModel

from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, edge
from .test_server import CHAT, MESSAGES, TEXT

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = LEFT_GENERATORS

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
RESPONSES = "/v1/responses"
NAME = "anystreamer.requests"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A real exporter's memory of the spans that have ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def trace_ids(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """The ids in the log of requests."""
    caplog.set_level(logging.INFO, NAME)
    found: list[Any] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.trace_id)  # type: ignore[attr-defined, method-assign]
    logging.getLogger(NAME).addHandler(handler)
    yield found
    logging.getLogger(NAME).removeHandler(handler)


def ended(exporter: InMemorySpanExporter) -> list[Any]:
    return [*exporter.get_finished_spans()]


def named(exporter: InMemorySpanExporter, name: str) -> list[Any]:
    return [span for span in ended(exporter) if span.name == name]


@pytest.mark.parametrize("server", SERVERS)
async def test_the_client_s_trace_is_taken(
    server: str, spans: InMemorySpanExporter, trace_ids: list[Any]
) -> None:
    async with edge(ScriptedModel(["a"]), server=server, model_name="counter") as (client, _):
        body = {"prompt": "Hi", "n": 2}
        answer = (await client.post(TEXT, json=body, headers=SENT)).json()
        await until(lambda: len(trace_ids) == 1)
    (request,) = named(spans, f"POST {TEXT}")
    assert request.kind is trace.SpanKind.SERVER
    assert (request.context.trace_id, request.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": TEXT,
        "url.path": TEXT,
        "url.scheme": "http",
        "http.response.status_code": 200,
    }
    generations = named(spans, "text_completion ScriptedModel")
    assert len(generations) == 2
    for span in generations:
        assert span.parent.span_id == request.context.span_id
        assert span.attributes["gen_ai.response.id"] == answer["id"]
        assert span.attributes["gen_ai.response.model"] == "counter"
        assert span.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert trace_ids == [TRACE]


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
async def test_spans_have_the_response_s_id(path: str, spans: InMemorySpanExporter) -> None:
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": MESSAGES},
        TEXT: {"prompt": "Hi"},
        RESPONSES: {"input": "Hi"},
    }
    body = bodies[path]
    async with edge(ScriptedModel(["a"])) as (client, _):
        answer = (await client.post(path, json=body)).json()
        text = (await client.post(path, json={**body, "stream": True})).text
    streamed = json.loads(text.partition("data: ")[2].partition("\n")[0])
    streamed = streamed.get("response", streamed)
    generations = [span for span in ended(spans) if span.kind.name == "INTERNAL"]
    ids = [span.attributes["gen_ai.response.id"] for span in generations]
    assert ids == [answer["id"], streamed["id"]]
    requests = named(spans, f"POST {path}")
    assert len({span.context.trace_id for span in requests}) == 2  # a trace of its own for each
    for request, generation in zip(requests, generations, strict=True):
        assert generation.parent.span_id == request.context.span_id


async def test_a_remote_engine_s_span_has_the_id_of_its_server(
    spans: InMemorySpanExporter,
) -> None:
    async with edge(ScriptedModel(["a"]), model_name="far") as (client, _):
        async with remote_engine(str(client.base_url), "far") as engine:
            async with engine.stream_text([{"role": "user", "content": "Hi"}]) as stream:
                assert await stream.read() == "a"
        await until(lambda: len(ended(spans)) == 3)
    (near,) = named(spans, "chat far")
    (far,) = named(spans, "chat ScriptedModel")
    assert near.attributes["gen_ai.response.id"] == far.attributes["gen_ai.response.id"]
    assert near.attributes["gen_ai.response.model"] == "far"


async def test_the_first_chunk_is_not_the_first_token(spans: InMemorySpanExporter) -> None:
    """A token can have no text that could be sent."""
    seconds = 0.05
    async with edge(ScriptedModel(["ab", seconds, "c"])) as (client, _):
        # "ab" can still become the stop string.
        body = {"prompt": "Hi", "stop": "abd", "stream": True}
        await client.post(TEXT, json=body)
    (span,) = named(spans, "text_completion ScriptedModel")
    first_token = span.attributes["anystreamer.timing.first_token"]
    assert span.attributes["gen_ai.response.time_to_first_chunk"] >= first_token + seconds


async def test_a_span_says_what_was_refused_and_what_failed(spans: InMemorySpanExporter) -> None:
    async with edge(ScriptedModel(["a", OSError("no memory")])) as (client, _):
        await client.post(TEXT, json={"prompt": "Hi", "temperature": 9})
        await client.post(TEXT, json={"prompt": "Hi"})
        await client.get("/health", headers=SENT)
        await client.get("/metrics")
    refused, failed = named(spans, f"POST {TEXT}")
    assert refused.attributes["http.response.status_code"] == 400
    assert refused.status.is_unset
    assert failed.attributes["error.type"] == "500"
    assert not failed.status.is_ok
    assert len(ended(spans)) == 3  # with that of the generation


@pytest.mark.parametrize("server", SERVERS)
async def test_a_client_that_leaves_ends_its_spans(
    server: str, spans: InMemorySpanExporter
) -> None:
    model = ScriptedModel(["a"] * 20_000, delay=0.001)
    async with edge(model, server=server) as (client, _):
        body = {"prompt": "Hi", "stream": True, "max_tokens": 10**6}
        async with client.stream("POST", TEXT, json=body, headers=SENT) as response:
            await anext(response.aiter_text())
        await until(lambda: len(ended(spans)) == 2)
    generation, request = ended(spans)
    assert generation.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert generation.status.is_unset
    assert request.status.is_unset
    assert request.context.trace_id == int(TRACE, 16)


async def test_a_span_around_the_application_is_the_request_s(
    spans: InMemorySpanExporter, trace_ids: list[Any]
) -> None:
    """As that of opentelemetry-instrumentation-asgi, which has taken the client's trace itself."""
    import httpx

    from anystreamer import open_engine
    from anystreamer.server import create_app

    model = ScriptedModel(["a"])
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine)

        async def instrumented(scope: Any, receive: Any, send: Any) -> None:
            with trace.get_tracer("test").start_as_current_span("outer"):
                await app(scope, receive, send)

        transport = httpx.ASGITransport(instrumented)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post(TEXT, json={"prompt": "Hi"}, headers=SENT)
            assert response.status_code == 200
    generation, outer = ended(spans)
    assert generation.parent.span_id == outer.context.span_id
    assert trace_ids == [f"{outer.context.trace_id:032x}"]


@pytest.mark.parametrize(
    ("sent", "trace_id"),
    [
        (None, None),
        (SENT["traceparent"], TRACE),
        (f"01-{TRACE}-{PARENT}-00-more", TRACE),  # of a later version
        (f"00-{TRACE}-{PARENT}-00-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        ("nonsense", None),
    ],
)
async def test_without_opentelemetry_the_log_has_the_client_s_trace(
    sent: str | None,
    trace_id: str | None,
    trace_ids: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    async with edge(ScriptedModel(["a"])) as (client, _):
        headers = {} if sent is None else {"traceparent": sent}
        await client.post(TEXT, json={"prompt": "Hi"}, headers=headers)
        await until(lambda: len(trace_ids) == 1)
    assert trace_ids == [trace_id]


async def test_of_two_parents_none_is_taken(trace_ids: list[Any]) -> None:
    async with edge(ScriptedModel(["a"])) as (client, _):
        both = [("traceparent", SENT["traceparent"]), ("traceparent", f"00-{'1' * 32}-{PARENT}-01")]
        await client.get("/health", headers=both)
        await until(lambda: len(trace_ids) == 1)
    assert trace_ids == [None]


@pytest.mark.parametrize("fails", ["get_tracer", "set_span_in_context"])
async def test_a_tracer_that_fails_changes_no_answer(
    fails: str, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(trace, fails, fail)
    async with edge(ScriptedModel(["a"])) as (client, _):
        answer = (await client.post(TEXT, json={"prompt": "Hi"}, headers=SENT)).json()
    assert answer["choices"][0]["text"] == "a"
