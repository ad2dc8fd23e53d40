"""Many requests on one model: one by one, or batched continuously."""

from ._base import BaseEngine, EngineHost, RequestContext
from ._engines import Engine, EngineContext, open_engine
from ._measures import EngineStatistics, Histogram

__all__ = [
    "BaseEngine",
    "Engine",
    "EngineContext",
    "EngineHost",
    "EngineStatistics",
    "Histogram",
    "RequestContext",
    "open_engine",
]
