"""`stream_from_thread` and `stream_iterable`: any blocking producer as a stream."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, TypeVar, overload

from anyio import CapacityLimiter

from .callables import (
    check_result,
    close_unstarted,
    name_of,
    unblocking_kind,
    validate_callback,
)
from .closing import Closing
from .context import StreamContext
from .emit import Emit, Stopping
from .producer import Producer
from .source import Source
from .stream import ThreadStream
from .validation import validate_buffer_size, validate_limiter, validate_name

__all__ = ["stream_from_thread", "stream_iterable"]

T = TypeVar("T")


@overload  # type checkers cannot infer T from the next one for such a function
def stream_from_thread(
    produce: Callable[[Callable[[T], None], Callable[[], bool]], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
) -> StreamContext[ThreadStream[T]]: ...


@overload
def stream_from_thread(
    produce: Callable[[Emit[T], Stopping], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
) -> StreamContext[ThreadStream[T]]: ...


def stream_from_thread(
    produce: Callable[[Any, Any], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
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
            Its return value is the `result` of the stream.
        max_buffer_size: ``emit`` waits while this many items have not been received, unless another
            task waits for *limiter*. Unbounded by default.
        limiter: the stream waits for a token of it before the thread starts, and holds the token
            until the thread has ended.
        on_stop: a function that ends the wait of *produce* in a driver. It is called once when the
            stream is stopped, in any way, if *produce* has begun and not returned. *produce* can
            register more by ``should_stop.on_stop(callback)``, for objects that it makes itself,
            such as a connection. It is called in any thread, also in the event loop's, and must not
            block. Its exceptions are logged, except for a KeyboardInterrupt.
        name: of the stream in the log, in messages, and of its thread and its tasks while it runs.
            By default the name of *produce*.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work. From the stream, if
            *produce* returns a coroutine or a generator in place of doing its work.
    """
    kind = unblocking_kind(produce) if callable(produce) else f"a {type(produce).__name__}"
    if kind:
        hint = ": use stream_iterable(lambda: ...)" if kind == "a generator function" else ""
        raise TypeError(
            "produce must be a blocking function, def produce(emit, should_stop), "
            f"but {name_of(produce)} is {kind}{hint}"
        )

    def checked(emit: Emit[Any], should_stop: Stopping) -> object:
        result = produce(emit, should_stop)
        check_result(result, name_of(produce))
        return result

    return _context(
        "stream_from_thread",
        checked,
        max_buffer_size,
        limiter,
        on_stop,
        validate_name(name) or name_of(produce),
    )


def stream_iterable(
    make_iterable: Callable[[], Iterable[T]],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
    close: bool = True,
) -> StreamContext[ThreadStream[T]]:
    """Make, iterate and close a blocking iterable in one worker thread, and stream its items.

    Args:
        make_iterable: called in the thread. The iterable that it returns is iterated there, and
            closed there if it has a ``close()``: a generator, a database cursor, a llama.cpp
            completion. The return value of a generator is the `result` of the stream. The standard
            streams of the process, such as `sys.stdin`, are never closed. The stream raises an
            exception of ``close()``; after a stop it is only logged.
        max_buffer_size: as for `stream_from_thread`.
        limiter: as for `stream_from_thread`.
        on_stop: as for `stream_from_thread`.
        name: as for `stream_from_thread`; by default the name of *make_iterable*.
        close: False leaves the iterable open: if it existed before, and others go on to use it.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work. From the stream, if
            *make_iterable* returns something that is not iterable, such as a coroutine.
    """
    if not callable(make_iterable):
        raise TypeError(
            "make_iterable must be a callable that returns an iterable, "
            f"not a {type(make_iterable).__name__}: write stream_iterable(lambda: ...)"
        )
    kind = unblocking_kind(make_iterable)
    if kind.startswith("an async"):
        raise TypeError(
            "make_iterable must be a blocking function that returns an iterable, "
            f"but {name_of(make_iterable)} is {kind}"
        )
    label = validate_name(name) or name_of(make_iterable)

    def produce(emit: Emit[T], should_stop: Stopping) -> object:
        iterable = make_iterable()
        _check_iterable(iterable, name_of(make_iterable))
        with Closing(iterable if close else None, label, should_stop):
            iterator = iter(iterable)
            is_other = close and iterator is not iterable
            with Closing(iterator if is_other else None, label, should_stop):
                while not should_stop():
                    try:
                        item = next(iterator)
                    except StopIteration as end:
                        return end.value
                    emit(item)
        return None

    return _context("stream_iterable", produce, max_buffer_size, limiter, on_stop, label)


def _check_iterable(made: object, name: str) -> None:
    """Raises TypeError with a clear message for what only an event loop could iterate or await."""
    kind = type(made)
    if not hasattr(kind, "__iter__") and issubclass(kind, (Awaitable, AsyncIterable)):
        close_unstarted(made)
        raise TypeError(
            f"{name} must return an iterable, but the {kind.__qualname__} that it returned is not "
            "iterable without an event loop"
        )


def _context(
    name: str,
    produce: Callable[[Emit[T], Stopping], object],
    max_buffer_size: float,
    limiter: CapacityLimiter | None,
    on_stop: Callable[[], object] | None,
    label: str,
) -> StreamContext[ThreadStream[T]]:
    """Return the block of a stream.

    Args:
        name: of the public function, for messages that show how to use it.
        label: what the producer is called in the log.
    """
    max_buffer_size = validate_buffer_size(max_buffer_size)
    limiter = validate_limiter(limiter)
    if on_stop is not None:
        validate_callback(on_stop, "on_stop")

    def run(producer: Producer[T]) -> object:
        stopping = Stopping(producer)
        if on_stop is not None:
            stopping.on_stop(on_stop)
        return produce(Emit(producer), stopping)

    return Source(name, label, run, max_buffer_size).context(limiter)
