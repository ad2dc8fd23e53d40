"""What a producer is called with: `Emit` delivers items, and `Stopping` says when to stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple

from .._errors import GenerationStopped
from .callables import validate_callback
from .producer import Producer

__all__ = ["Emit", "Stopping"]

T = TypeVar("T")
ResultT = TypeVar("ResultT")
ArgsT = TypeVarTuple("ArgsT")


class Emit(Generic[T]):
    """Delivers the items of a producer. From any thread, until the producer has returned.

    Items of one thread keep their order.
    """

    def __init__(self, producer: Producer[T]) -> None:
        self._producer = producer

    def __call__(self, item: T) -> None:
        """Deliver an item. Waits while the buffer is full.

        Raises:
            GenerationStopped: the stream has been stopped, or its consumer has gone.
            RuntimeError: the producer has returned; or this is the thread of the event loop.
        """
        self._producer.emit(item)

    def many(self, items: Iterable[T]) -> None:
        """Deliver several items at once, with at most one crossing to the event loop.

        They can be more than the buffer has space for: it adds all of them, and then waits.

        Raises:
            GenerationStopped, RuntimeError: as for a single item.
        """
        self._producer.emit(*items)

    def offer(self, item: T) -> bool:
        """Deliver an item; after a stop, return False, and raise nothing.

        For callbacks that code in C calls, and for threads that must not end: there an exception
        would be lost.

        Raises:
            RuntimeError: as for `__call__`.
        """
        try:
            self._producer.emit(item)
        except GenerationStopped:
            return False
        return True


class Stopping:
    """Says whether a producer is to return. From any thread."""

    def __init__(self, producer: Producer[Any]) -> None:
        self._producer = producer

    def __call__(self) -> bool:
        """Whether to return: after `stop()`, a cancelled scope, or the end of the block."""
        return self._producer.should_stop()

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call a function when the stream is stopped, in any way: to end a wait in a driver.

        It is called once, in any thread, also in the event loop's, and must not block: interrupt a
        connection, kill a process, shut down a socket. If the stop has come already, it is called
        at once. It is never called after the producer has returned. Its exceptions are logged,
        except for a KeyboardInterrupt.

        Raises:
            TypeError: *callback* is not a plain function, but an async one, for example.
        """
        validate_callback(callback)
        self._producer.on_stop(callback)

    def wait_for(self, func: Callable[[*ArgsT], Awaitable[ResultT]], *args: *ArgsT) -> ResultT:
        """Await ``func(*args)`` in the event loop, and return its result. A stop cancels it.

        For the producer's own thread. It is `anyio.from_thread.run` for producers that can run in
        a `Worker`: there, a stop does not cancel what that function awaits.

        Raises:
            GenerationStopped: the stream was stopped, before the call or meanwhile.
            RuntimeError: called in another thread; or *func* needs the only thread, or the
                limiter's only token, which this producer holds: it would wait for itself.
            BaseException: what *func* raised.
        """
        return self._producer.wait_for(partial(func, *args))
