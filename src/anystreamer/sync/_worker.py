"""Workers for callers with no event loop: one that is open elsewhere, or one of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, TypeVarTuple, overload

from .._bridge import Emit, Stopping, StreamContext, ThreadStream
from .._workers import (
    ThreadOwner,
    Worker,
    WorkerContext,
    WorkerStatistics,
    WorkThreads,
    call_source,
    owner_of,
)
from ._keeper import Owned
from ._portal import Tasks
from ._streams import SyncThreadStream

__all__ = ["OwnedSyncWorker", "SyncWorker"]

T = TypeVar("T")
ArgsT = TypeVarTuple("ArgsT")


class SyncWorker:
    """An open worker for callers with no event loop, in any number of threads at once.

    `open_worker` gives one. A worker that is open in an event loop can be used from other threads
    as ``SyncWorker(worker)``: from the ``def`` routes of an async application, for instance.

    Raises:
        TypeError: *worker* is not from `anystreamer.open_worker`.
    """

    def __init__(self, worker: Worker) -> None:
        owner_of(worker)
        self._borrowed = worker

    @property
    def _worker(self) -> Worker:
        return self._borrowed

    @overload  # as of `anystreamer.stream_from_thread`
    def stream_from_thread(
        self,
        produce: Callable[[Callable[[T], None], Callable[[], bool]], object],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        queue_timeout: float | None = None,
    ) -> SyncThreadStream[T]: ...

    @overload
    def stream_from_thread(
        self,
        produce: Callable[[Emit[T], Stopping], object],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        queue_timeout: float | None = None,
    ) -> SyncThreadStream[T]: ...

    def stream_from_thread(
        self,
        produce: Callable[[Any, Any], object],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        queue_timeout: float | None = None,
    ) -> SyncThreadStream[Any]:
        """As `Worker.stream_from_thread`, with the same arguments, for ``with`` and ``for``.

        Raises:
            RuntimeError: when the block is entered in the only thread of this worker: it would wait
                for itself.
            Exception: the same as `Worker.stream_from_thread`.
        """
        worker = self._worker
        context = worker.stream_from_thread(
            produce,
            max_buffer_size=max_buffer_size,
            on_stop=on_stop,
            name=name,
            queue_timeout=queue_timeout,
        )
        return SyncThreadStream("stream_from_thread", _opener(owner_of(worker), context))

    def stream_iterable(
        self,
        make_iterable: Callable[[], Iterable[T]],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        close: bool = True,
        queue_timeout: float | None = None,
    ) -> SyncThreadStream[T]:
        """As `Worker.stream_iterable`, with the same arguments, for ``with`` and ``for``.

        Raises:
            Exception: the same as `stream_from_thread`.
        """
        worker = self._worker
        context = worker.stream_iterable(
            make_iterable,
            max_buffer_size=max_buffer_size,
            on_stop=on_stop,
            name=name,
            close=close,
            queue_timeout=queue_timeout,
        )
        return SyncThreadStream("stream_iterable", _opener(owner_of(worker), context))

    def run(
        self,
        func: Callable[[*ArgsT], T],
        *args: *ArgsT,
        on_stop: Callable[[], object] | None = None,
        queue_timeout: float | None = None,
    ) -> T:
        """As `Worker.run`, with the same arguments: block until the function has returned.

        A Ctrl-C in the caller is raised after the function has returned, or at once if its turn has
        not come: then it is not called.

        Raises:
            RuntimeError: in the only thread of this worker, which would wait for itself.
            BaseException: the same as from `Worker.run`.
        """
        owner = owner_of(self._worker)
        context = owner.new_stream(call_source(func, args, on_stop), queue_timeout)
        with SyncThreadStream("run", _opener(owner, context)) as stream:
            for _ in stream:
                pass
        result: T = stream.result
        return result

    def statistics(self) -> WorkerStatistics:
        """As `Worker.statistics`."""
        return self._worker.statistics()


class OwnedSyncWorker(Owned[Worker], SyncWorker):
    """A worker of its own, for ``with``, or for `open` and later `close`.

    If you drop it without closing it, it closes by itself.
    """

    def __init__(self, context: WorkerContext) -> None:
        super().__init__("open_worker", context)

    @property
    def _worker(self) -> Worker:
        return self._shown

    def _threads_of(self, shown: Worker) -> WorkThreads:
        return owner_of(shown).threads


def _opener(
    owner: ThreadOwner, context: StreamContext[ThreadStream[T]]
) -> Callable[[], tuple[Tasks, StreamContext[ThreadStream[T]]]]:
    """Return a function for `SyncThreadStream`: it returns the worker's tasks, and *context*."""
    return lambda: (owner.tasks, context)
