"""Many requests on one model: one by one, or batched continuously."""

from ._engines import Engine, open_engine
from ._measures import EngineStatistics, Histogram

__all__ = ["Engine", "EngineStatistics", "Histogram", "open_engine"]
