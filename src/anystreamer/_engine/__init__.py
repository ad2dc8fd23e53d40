"""Many requests on one model: one by one, or batched continuously."""

from .api import EngineContext, open_engine
from .base import BaseEngine, Engine, EngineTask
from .metrics import EngineStatistics

__all__ = [
    "BaseEngine",
    "Engine",
    "EngineContext",
    "EngineStatistics",
    "EngineTask",
    "open_engine",
]
