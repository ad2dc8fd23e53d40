"""`open_worker`: threads that an application owns, for streams that can be held across a yield."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, overload

from .._bridge import (
    Emit,
    Producer,
    Source,
    Stopping,
    StreamContext,
    ThreadStream,
    check_result,
    name_of,
    source_of,
    stream_from_thread,
    stream_iterable,
    validate_callback,
    validate_name,
)
from .context import OwnerContext
from .metrics import Histogram
from .thread_owner import ThreadOwner
from .validation import validate_count

__all__ = [
    "Worker",
    "WorkerContext",
    "WorkerStatistics",
    "call_source",
    "open_worker",
    "owner_of",
]

T = TypeVar("T")
ArgsT = TypeVarTuple("ArgsT")


def open_worker(
    *, threads: int = 1, max_waiting: int | None = None, name: str | None = None
) -> WorkerContext:
    """Own threads for blocking producers, as `open_engine` owns a model.

    Use it as ``async with open_worker() as worker:``, around a server or in the lifespan of an
    application. Any task of the event loop can then open streams of the worker. A stream opens no
    cancel scope, so it can stay open across a ``yield``: in an async generator, or as the body of a
    response. Leaving the block ends all open streams and joins the threads.

    Args:
        threads: how many producers run at once, each in one of these threads, which stay the same.
            With one thread, all producers run in this thread, one after the other: for SQLite
            connections, COM objects, and other objects that belong to the thread that made them.
        max_waiting: how many streams can wait for their turn; one more raises `EngineBusy`. None
            sets no limit.
        name: of the worker, for messages.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    if threads is None:
        raise TypeError("threads must be a whole number, not None")
    validate_count("threads", threads, 1)
    validate_count("max_waiting", max_waiting, 0)
    validate_name(name)
    return WorkerContext(lambda: ThreadOwner(threads, max_waiting, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatistics:
    """Numbers of one worker. Calls of `Worker.run` count as streams."""

    threads: int  #: that it owns
    waiting: int  #: streams whose turn has not come
    running: int  #: streams whose producer has a thread
    queued: Histogram  #: from the entry of a block to the turn
    total: Histogram  #: from the entry to the end; `count` is the number of streams that ended


class Worker:
    """Runs blocking producers in threads of its own, first come, first served. See `open_worker`.

    All its streams have the promises of an engine's. Use it in the event loop that it was opened
    in.
    """

    _owner: ThreadOwner

    @overload  # as of `anystreamer.stream_from_thread`
    def stream_from_thread(
        self,
        produce: Callable[[Callable[[T], None], Callable[[], bool]], object],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        queue_timeout: float | None = None,
    ) -> StreamContext[ThreadStream[T]]: ...

    @overload
    def stream_from_thread(
        self,
        produce: Callable[[Emit[T], Stopping], object],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        queue_timeout: float | None = None,
    ) -> StreamContext[ThreadStream[T]]: ...

    def stream_from_thread(
        self,
        produce: Callable[[Any, Any], object],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        queue_timeout: float | None = None,
    ) -> StreamContext[ThreadStream[Any]]:
        """Run a blocking function in a thread of the worker, and stream what it emits.

        Use it as ``async with worker.stream_from_thread(produce) as stream:``, in any task. The
        block can stay open across a ``yield``: it opens no cancel scope. The producer stops if you
        leave the block, close the generator that holds it, or if this generator is
        garbage-collected.

        Args:
            produce: as for `anystreamer.stream_from_thread`. It runs with the context variables of
                the task that enters the block.
            max_buffer_size: ``emit`` waits while this many items have not been received, unless
                another stream waits for the worker. Unbounded by default.
            on_stop: as for `anystreamer.stream_from_thread`.
            name: as for `anystreamer.stream_from_thread`.
            queue_timeout: how many seconds the stream can wait for its turn. If the turn has not
                come by then, the producer never runs. None sets no limit.

        Raises:
            EngineBusy: when the block is entered, if the queue is full.
            GenerationTimeout: from the stream, after *queue_timeout*. Its `phase` is ``queued``.
            EngineClosed: when it is entered; or from the stream, after its items.
            RuntimeError: when it is entered in another event loop; or by what a producer waits for
                with `Stopping.wait_for`, if it runs in the worker's only thread.
            TypeError, ValueError: at once, for an argument that cannot work.
        """
        return self._own(
            stream_from_thread(
                produce, max_buffer_size=max_buffer_size, on_stop=on_stop, name=name
            ),
            queue_timeout,
        )

    def stream_iterable(
        self,
        make_iterable: Callable[[], Iterable[T]],
        *,
        max_buffer_size: float = math.inf,
        on_stop: Callable[[], object] | None = None,
        name: str | None = None,
        close: bool = True,
        queue_timeout: float | None = None,
    ) -> StreamContext[ThreadStream[T]]:
        """Make, iterate and close a blocking iterable in one thread, and stream its items.

        Args:
            make_iterable: as for `anystreamer.stream_iterable`.
            max_buffer_size: as for `stream_from_thread`.
            on_stop: as for `stream_from_thread`.
            name: as for `stream_from_thread`; by default the name of *make_iterable*.
            close: as for `anystreamer.stream_iterable`.
            queue_timeout: as for `stream_from_thread`.

        Raises:
            Exception: the same as `stream_from_thread`.
        """
        return self._own(
            stream_iterable(
                make_iterable,
                max_buffer_size=max_buffer_size,
                on_stop=on_stop,
                name=name,
                close=close,
            ),
            queue_timeout,
        )

    async def run(
        self,
        func: Callable[[*ArgsT], T],
        *args: *ArgsT,
        on_stop: Callable[[], object] | None = None,
        queue_timeout: float | None = None,
    ) -> T:
        """Call a blocking function in a thread of the worker, in its turn, and return its result.

        If the caller is cancelled before the turn, the function is not called. If it is cancelled
        later, this waits until the function has returned.

        Args:
            func: called with *args*, with the context variables of the caller. It must not return
                a generator or a coroutine: that would do its work elsewhere.
            on_stop: called once if the caller is cancelled, or the worker closed, while *func*
                runs: to end what blocks it. It must not block.
            queue_timeout: as for `stream_from_thread`.

        Raises:
            EngineBusy, EngineClosed, GenerationTimeout, RuntimeError, TypeError, ValueError: as
                from `stream_from_thread`.
            BaseException: what *func* raised.
        """
        owner = self._owner
        context = owner.new_stream(call_source(func, args, on_stop), queue_timeout)
        async with context as stream:
            async for _ in stream:
                pass
        assert context.task is not None
        result: T = context.task.state.result
        return result

    def statistics(self) -> WorkerStatistics:
        """Numbers and times of this worker's streams. From any thread."""
        owner = self._owner
        queued, total = owner.metrics.histograms()
        return WorkerStatistics(
            threads=owner.threads.count,
            waiting=len(owner.queue.waiting),
            running=len(owner.queue.running),
            queued=queued,
            total=total,
        )

    def __repr__(self) -> str:
        return f"<anystreamer.Worker {self._owner.describe()}>"

    def _own(
        self, context: StreamContext[ThreadStream[T]], queue_timeout: float | None
    ) -> StreamContext[ThreadStream[T]]:
        """The same stream, with a thread of the worker."""
        return self._owner.new_stream(source_of(context), queue_timeout)


class _OpenWorker(Worker):
    def __init__(self, owner: ThreadOwner) -> None:
        self._owner = owner

    @property
    def owner(self) -> ThreadOwner:
        return self._owner


class WorkerContext(OwnerContext[ThreadOwner, Worker]):
    """The ``async with`` block that owns a worker."""

    _name = "open_worker"

    def _show(self, owner: ThreadOwner) -> Worker:
        return _OpenWorker(owner)


def owner_of(worker: Worker) -> ThreadOwner:
    """What runs the producers of an open worker.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(worker, _OpenWorker):
        return worker.owner
    raise TypeError(
        "worker must be an open worker, from 'async with open_worker(...) as worker:', "
        f"not {type(worker).__name__}"
    )


def call_source(
    func: Callable[..., T], args: tuple[Any, ...], on_stop: Callable[[], object] | None
) -> Source[Any]:
    """What calls a function once, as a producer of no items whose result is the function's.

    Raises:
        TypeError: *func* or *on_stop* is not a plain function.
    """
    validate_callback(func, "func")
    if on_stop is not None:
        validate_callback(on_stop, "on_stop")

    def call(producer: Producer[Any]) -> T:
        if on_stop is not None:
            producer.on_stop(on_stop)
        result = func(*args)
        check_result(result, name_of(func))
        return result

    return Source[Any]("run", name_of(func), call, math.inf)
