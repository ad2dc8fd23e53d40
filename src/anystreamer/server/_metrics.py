"""What Prometheus is told: of requests, and of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import Response

from .._engine import Engine
from .._streams import Usage

__all__ = ["Metrics"]

_TIMES = {
    "queued": "from a request to its turn",
    "first_token": "from a request to its first token",
    "between_tokens": "from one token of a request to its next",
    "total": "from a request to its end",
}


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self._requests = Counter(
            "anystreamer_http_requests",
            "HTTP requests for text, by how they ended: a status, disconnected, or failed, which "
            "is after the stream had begun",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "anystreamer_http_tokens",
            "Tokens of requests that have ended",
            ["kind"],
            registry=self._registry,
        )

    def ended(self, endpoint: str, outcome: str, usages: Sequence[Usage] = ()) -> None:
        """A request has ended."""
        self._requests.labels(endpoint, outcome).inc()
        self._tokens.labels("prompt").inc(sum(usage.prompt_tokens for usage in usages))
        self._tokens.labels("completion").inc(sum(usage.completion_tokens for usage in usages))

    def response(self, accept: str) -> Response:
        """All of it, in the format that is asked for."""
        encode, media_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"content-type": media_type})


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        now = self._engine.statistics()
        yield GaugeMetricFamily(
            "anystreamer_requests_waiting", "Requests whose turn has not come", now.waiting
        )
        yield GaugeMetricFamily(
            "anystreamer_requests_running", "Requests that the model works on", now.running
        )
        yield GaugeMetricFamily(
            "anystreamer_up",
            "Whether the engine takes requests",
            int(getattr(self._engine, "state", "open") == "open"),
        )
        if now.cache_used is not None:
            yield GaugeMetricFamily(
                "anystreamer_cache_used_ratio", "Share of the cache in use", now.cache_used
            )
        yield CounterMetricFamily(
            "anystreamer_computed_tokens", "Tokens made by the model", now.computed_tokens
        )
        for name, meaning in _TIMES.items():
            times = getattr(now, name)
            yield HistogramMetricFamily(
                f"anystreamer_{name}_seconds",
                f"Time {meaning}",
                buckets=[
                    *zip(map(str, times.bounds), times.counts, strict=False),
                    ("+Inf", times.count),
                ],
                sum_value=times.sum,
            )
