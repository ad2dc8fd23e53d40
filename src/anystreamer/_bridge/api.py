"""`stream_from_thread` and `stream_iterable`: any blocking producer as a stream."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar, overload

from anyio import CapacityLimiter

from .context import StreamContext
from .emit import Emit, Stopping
from .producer import Producer
from .source import Source
from .stream import ThreadStream
from .validation import validate_buffer_size, validate_limiter

__all__ = ["stream_from_thread", "stream_iterable"]

T = TypeVar("T")


@overload  # type checkers cannot infer T from the next one for such a function
def stream_from_thread(
    produce: Callable[[Callable[[T], None], Callable[[], bool]], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
) -> StreamContext[ThreadStream[T]]: ...


@overload
def stream_from_thread(
    produce: Callable[[Emit[T], Stopping], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
) -> StreamContext[ThreadStream[T]]: ...


def stream_from_thread(
    produce: Callable[[Any, Any], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
) -> StreamContext[ThreadStream[Any]]:
    """Run a blocking function in a worker thread and stream what it emits.

    Use it as ``async with stream_from_thread(produce) as stream:``. After the block, the thread has
    returned from *produce*, whatever ended the block.

    Args:
        produce: ``produce(emit, should_stop)``, any blocking function. It calls ``emit(item)`` for
            each item, and returns soon after ``should_stop()`` becomes true. If it does not call
            ``should_stop``, the `GenerationStopped` that ``emit`` raises after a stop ends it.
            Other threads can call both, too, until it has returned. ``emit.many(items)`` delivers
            several items, and ``emit.offer(item)`` returns False after a stop and does not raise.
        max_buffer_size: ``emit`` waits while this many items have not been received, unless another
            task waits for *limiter*. Unbounded by default.
        limiter: the stream waits for a token of it before the thread starts, and holds the token
            until the thread has ended.
        on_stop: called once when the stream is stopped, in whichever way, if *produce* has begun
            and not returned: to end what blocks it. *produce* can register more by
            ``should_stop.on_stop(callback)``, for what it makes itself, such as a connection. It is
            called in any thread, the event loop's too, and must not block. An exception that it
            raises is logged.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    functions = (produce, getattr(produce, "__call__", None))  # noqa: B004
    if not callable(produce) or any(is_kind(each) for is_kind in kinds for each in functions):
        raise TypeError("produce must be a blocking function: def produce(emit, should_stop)")
    return _context("stream_from_thread", produce, max_buffer_size, limiter, on_stop)


def stream_iterable(
    make_iterable: Callable[[], Iterable[T]],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
) -> StreamContext[ThreadStream[T]]:
    """Make, iterate and close a blocking iterable in one worker thread, and stream its items.

    Args:
        make_iterable: called in the thread. The iterable that it returns is iterated there, and
            closed there if it has a ``close()``: a generator, a database cursor, a llama.cpp
            completion.
        max_buffer_size: as for `stream_from_thread`.
        limiter: as for `stream_from_thread`.
        on_stop: as for `stream_from_thread`.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    if not callable(make_iterable):
        raise TypeError(
            "make_iterable must be a callable that returns an iterable, "
            f"not a {type(make_iterable).__name__}: write stream_iterable(lambda: ...)"
        )

    def produce(emit: Emit[T], should_stop: Stopping) -> None:
        iterable = make_iterable()
        with _Closing(iterable):
            iterator = iter(iterable)
            with _Closing(None if iterator is iterable else iterator):
                while not should_stop():
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                    emit(item)

    return _context("stream_iterable", produce, max_buffer_size, limiter, on_stop)


class _Closing:
    """Calls the ``close()`` of an object at the end of a block, if the object has one.

    `contextlib.ExitStack` is not used: it sets attributes of an exception that passes through.
    """

    def __init__(self, obj: object) -> None:
        self._close = getattr(obj, "close", None)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        if callable(self._close):
            self._close()


def _context(
    name: str,
    produce: Callable[[Emit[T], Stopping], object],
    max_buffer_size: float,
    limiter: CapacityLimiter | None,
    on_stop: Callable[[], object] | None,
) -> StreamContext[ThreadStream[T]]:
    max_buffer_size = validate_buffer_size(max_buffer_size)
    limiter = validate_limiter(limiter)
    if on_stop is not None and not callable(on_stop):
        raise TypeError(f"on_stop must be a callable, not a {type(on_stop).__name__}")

    def run(producer: Producer[T]) -> object:
        stopping = Stopping(producer)
        if on_stop is not None:
            stopping.on_stop(on_stop)
        return produce(Emit(producer), stopping)

    return Source(name, run, max_buffer_size).context(limiter)
