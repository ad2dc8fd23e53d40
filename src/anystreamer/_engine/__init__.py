"""Many requests on one model: one by one, or batched continuously."""

from .api import EngineContext, open_engine
from .base import MAX_RUNNING, BaseEngine, Engine, EngineTask
from .metrics import EngineStatistics

__all__ = [
    "MAX_RUNNING",
    "BaseEngine",
    "Engine",
    "EngineContext",
    "EngineStatistics",
    "EngineTask",
    "open_engine",
]
