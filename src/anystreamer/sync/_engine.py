"""Engines for callers with no event loop: one that is open elsewhere, or one of its own."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Self

import anyio

from .._bridge import DetachedTasks, LoopGone, SafeEvent
from .._engine import Engine, EngineContext, EngineStatistics
from ._portal import Tasks, portal
from ._signatures import method_with_signature_of
from ._streams import SyncTextStream

__all__ = ["OwnedSyncEngine", "SyncEngine"]

# How often the loop looks whether an open engine has been forgotten (seconds).
OWNER_POLL = 1.0


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


class OwnedSyncEngine(SyncEngine):
    """An engine of its own, for ``with``; or for `open`, and `close` when you need it no more.

    An engine that is forgotten closes by itself.
    """

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._keeper: EngineKeeper | None = None

    def open(self) -> Self:
        """Open it, and return it.

        Raises:
            RuntimeError: it has been opened before.
            BaseException: the engine cannot start.
        """
        if self._keeper is not None:
            raise RuntimeError("this open_engine() has been opened before; call it again")
        tasks = portal.tasks()
        self._keeper = EngineKeeper(self._context, tasks, weakref.ref(self))
        tasks.call_from_thread(self._keeper.open)
        return self

    def close(self) -> None:
        """End the streams that are open, and wait for the engine's thread. Again, it does nothing.

        Raises:
            BaseException: the engine's end failed.
        """
        if self._keeper is not None:
            with contextlib.suppress(LoopGone):  # and with it the engine
                self._keeper.tasks.call_from_thread(self._keeper.close)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _engine(self) -> Any:
        if self._keeper is None or self._keeper.engine is None:
            raise TypeError(
                "open_engine() must be opened first: 'with open_engine(...) as engine:', "
                "or 'engine = open_engine(...).open()' and later 'engine.close()'"
            )
        return self._keeper.engine


class EngineKeeper:
    """Keeps an engine's block open in one task of the loop, since one task has to leave it."""

    def __init__(
        self, context: EngineContext, tasks: Tasks, owner: weakref.ref[OwnedSyncEngine]
    ) -> None:
        self.tasks = tasks
        self.engine: Engine | None = None
        self._context = context
        self._owner = owner
        self._opened_or_failed = SafeEvent()
        self._closing = SafeEvent()
        self._ended = SafeEvent()
        self._error: BaseException | None = None

    async def open(self) -> None:
        """Open the block. Raises the exception of its entry."""
        self.tasks.start(self._keep())
        await self._opened_or_failed.wait()
        self._raise_error()

    async def close(self) -> None:
        """Leave the block. Raises the exception of its end, once."""
        self._closing.set()
        await self._ended.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _keep(self) -> None:
        try:
            async with self._context as self.engine:
                self._opened_or_failed.set()
                while self._owner() is not None and not self._closing.is_set():
                    with anyio.move_on_after(OWNER_POLL):
                        await self._closing.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:  # one that is not an Exception would end the whole loop
            self._error = exc
        finally:
            self._opened_or_failed.set()
            self._ended.set()
