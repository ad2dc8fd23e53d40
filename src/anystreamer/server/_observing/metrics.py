"""Metrics for Prometheus: of requests, and in the same registry those of engine and server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from ..._engine import Engine
from ..._streams import TextStream
from .engine_collector import EngineCollector
from .server_collector import ServerCollector

__all__ = ["Metrics"]

# Upper bounds in tokens: prompts and answers have from one to as many as a context takes.
TOKENS = (*(digit * 10**zeros for zeros in range(6) for digit in (1, 2, 5)), 1_000_000)


class Metrics:
    """The metrics of one application, in a registry of its own.

    Args:
        engine: the engine that the application serves.
        model_name: the model's name in requests and responses.
        limits: the limits of the application, by their names.
    """

    def __init__(self, engine: Engine, model_name: str, limits: Mapping[str, float | None]) -> None:
        self.registry = CollectorRegistry()
        self._server = ServerCollector(engine, model_name, limits)
        for collector in (EngineCollector(engine), self._server):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)  # from /proc, where there is one
        PlatformCollector(registry=self.registry)
        self._open = Gauge(
            "anystreamer_http_open_requests",
            "HTTP requests for text that have come, and have not ended",
            ["endpoint"],
            registry=self.registry,
        )
        self._requests = Counter(
            "anystreamer_http_requests",
            "HTTP requests for text, by how they ended: a status; disconnected; stalled, the "
            "client did not receive its response; or failed, an error after the stream had begun",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "anystreamer_http_tokens",
            "Tokens of requests that have ended",
            ["kind"],
            registry=self.registry,
        )
        self._answers = Counter(
            "anystreamer_http_answers",
            "Answers to requests that were not refused, by why they ended",
            ["finish_reason"],
            registry=self.registry,
        )
        self._prompt_tokens = Histogram(
            "anystreamer_http_prompt_tokens",
            "Tokens of the prompt of an answer",
            buckets=TOKENS,
            registry=self.registry,
        )
        self._answer_tokens = Histogram(
            "anystreamer_http_answer_tokens",
            "Tokens of an answer",
            buckets=TOKENS,
            registry=self.registry,
        )

    def on_begin(self, endpoint: str) -> None:
        """A request has come: `on_end` is called for each, once."""
        self._open.labels(endpoint).inc()

    def on_end(self, endpoint: str, outcome: str, answers: Sequence[TextStream] = ()) -> None:
        """A request has ended. One that was refused has no answers."""
        self._open.labels(endpoint).dec()
        self._requests.labels(endpoint, outcome).inc()
        for answer in answers:
            if answer.finish_reason is not None:
                self._answers.labels(str(answer.finish_reason)).inc()
            if (usage := answer.usage) is not None:
                self._prompt_tokens.observe(usage.prompt_tokens)
                self._answer_tokens.observe(usage.completion_tokens)
                self._tokens.labels("prompt").inc(usage.prompt_tokens)
                self._tokens.labels("completion").inc(usage.completion_tokens)

    def response(self, accept: str, extensions: Mapping[str, Any]) -> Response:
        """All metrics, in the format that *accept* asks for.

        *extensions* are the ASGI extensions of the request: one of them counts connections.
        """
        self._server.take_connections(extensions)
        encode, media_type = choose_encoder(accept)
        return Response(encode(self.registry), headers={"content-type": media_type})
