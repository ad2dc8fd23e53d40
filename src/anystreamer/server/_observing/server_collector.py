"""Metrics of a server: its model's name, versions, limits, and open connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ..._engine import Engine
from ..._serving import CONNECTIONS

__all__ = ["ServerCollector"]

_PACKAGES = ("anystreamer", "transformers", "torch")


class ServerCollector(Collector):
    """Collects what does not change, and the connections of the server."""

    def __init__(self, engine: Engine, model_name: str, limits: Mapping[str, float | None]) -> None:
        self._model = {"model_name": model_name, "engine": type(engine).__name__}
        self._versions = {name: _version(name) for name in _PACKAGES}
        own = {name: getattr(engine, name, None) for name in ("max_running", "max_waiting")}
        self._limits = {**own, **limits}
        self._connections: tuple[Callable[[], int], int] | None = None

    def take_connections(self, extensions: Mapping[str, Any]) -> None:
        """Keep the function that counts the server's connections, if a request's scope has it."""
        self._connections = extensions.get(CONNECTIONS)

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("anystreamer_model", "The model that is served", self._model)
        yield InfoMetricFamily("anystreamer_build", "Versions of packages", self._versions)
        limits = dict(self._limits)
        if self._connections is not None:
            count, limits["max_connections"] = self._connections
            yield GaugeMetricFamily(
                "anystreamer_open_connections", "Connections of clients", count()
            )
        family = GaugeMetricFamily(
            "anystreamer_limit", "Limits that are set, in their own unit", labels=["limit"]
        )
        for name, limit in limits.items():
            if limit is not None and math.isfinite(limit):
                family.add_metric([name], limit)
        yield family


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
