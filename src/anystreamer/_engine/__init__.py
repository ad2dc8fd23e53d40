"""Many requests on one model: one by one, or batched continuously."""

from .api import EngineContext, open_engine
from .base import BaseEngine, EngineTask
from .metrics import EngineStatistics
from .protocol import Engine

__all__ = [
    "BaseEngine",
    "Engine",
    "EngineContext",
    "EngineStatistics",
    "EngineTask",
    "open_engine",
]
