"""Engines for callers with no event loop: one that is open elsewhere, or one of its own."""

from __future__ import annotations

from typing import Any

from .._bridge import DetachedTasks
from .._engine import Engine, EngineContext, EngineStatistics
from .._workers import WorkThreads
from ._keeper import Owned
from ._signatures import method_with_signature_of
from ._text_streams import SyncTextStream

__all__ = ["OwnedSyncEngine", "SyncEngine"]


class SyncEngine:
    """An open engine for callers with no event loop, in any number of threads at once.

    `open_engine` gives one. An engine that is open in an event loop can be used from other threads
    as ``SyncEngine(engine)``: from the ``def`` routes of an async application, for instance.

    Raises:
        TypeError: *engine* is not from `anystreamer.open_engine` or `open_remote_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        if not isinstance(getattr(engine, "tasks", None), DetachedTasks):
            raise TypeError(
                "engine must be an open engine, from 'async with open_engine(...) as engine:', "
                f"not {type(engine).__name__}"
            )
        self._borrowed = engine

    @property
    def _engine(self) -> Any:
        return self._borrowed

    @method_with_signature_of(Engine.stream_text)  # type: ignore[arg-type]  # **kwargs could be "self"
    def stream_text(self, *args: Any, **kwargs: Any) -> SyncTextStream:
        """As `Engine.stream_text`, with the same arguments, for ``with`` and ``for``."""
        engine = self._engine
        context = engine.stream_text(*args, **kwargs)
        return SyncTextStream("stream_text", lambda: (engine.tasks, context))

    def statistics(self) -> EngineStatistics:
        """As `Engine.statistics`."""
        statistics: EngineStatistics = self._engine.statistics()
        return statistics


class OwnedSyncEngine(Owned[Engine], SyncEngine):
    """An engine of its own, for ``with``, or for `open` and later `close`.

    If you drop it without closing it, it closes by itself.
    """

    def __init__(self, context: EngineContext) -> None:
        super().__init__("open_engine", context)

    @property
    def _engine(self) -> Any:
        return self._shown

    def _threads_of(self, shown: Engine) -> WorkThreads | None:
        return getattr(shown, "threads", None)
