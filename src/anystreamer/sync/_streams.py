"""Streams for callers with no event loop: for a ``with`` block and a ``for`` loop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

import anyio

from .._bridge import (
    Ending,
    IfInterrupted,
    LoopGone,
    StreamContext,
    ThreadEvent,
    ThreadStream,
    validate_max_items,
)
from .._errors import add_note, describe, raise_preserving_context
from ._portal import Tasks

__all__ = ["SyncStream", "SyncThreadStream"]

# A Ctrl-C in a thread that waits for another one's close() can leave the event unset. So it is
# looked at this often (seconds).
CLOSE_POLL = 1.0

T = TypeVar("T")
ResultT = TypeVar("ResultT")
# Closed: from another thread.
_ENDED = (anyio.EndOfStream, anyio.ClosedResourceError)

StreamT = TypeVar("StreamT", bound=ThreadStream[Any])


class SyncStream(Generic[StreamT, T]):
    """A stream for a ``with`` block and a ``for`` loop.

    It can be opened in one thread, and read or closed in others. A second ``for`` loop goes on
    where the first one was left. A stream that is forgotten stops its producer, such as a model,
    when it is collected.

    Args:
        name: of the public function, for messages.
        new_context: returns the loop's tasks, and the stream's block on that loop.
    """

    _kept = ""  # says where the items still are once the stream has ended

    def __init__(
        self, name: str, new_context: Callable[[], tuple[Tasks, StreamContext[StreamT]]]
    ) -> None:
        self._name = name
        self._new_context = new_context
        self._tasks: Tasks
        self._context: StreamContext[StreamT] | None = None
        self._opened: StreamT | None = None
        self._lock = threading.Lock()
        self._closed: ThreadEvent | None = None  # once it is being closed; set after that
        self._is_closed = False
        self._was_read_to_its_end = False
        self._was_stopped = False  # a loop over what is left can then find nothing
        # Items that an exception which struck a thread has kept from it, as a Ctrl-C can.
        self._unreturned: list[T] = []

    def __enter__(self) -> Self:
        if self._context is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._tasks, context = self._new_context()
        self._tasks.home.check_process()
        self._context = context
        is_wanted = True

        async def enter() -> StreamT:
            stream = await context.__aenter__()
            if not is_wanted and context.task is not None:
                context.task.state.abandon()
            return stream

        try:
            self._opened = self._call(enter, "leave")
        except BaseException:  # a Ctrl-C ends only this wait, and no __exit__ will follow
            is_wanted = False  # first: either we see the task, or the loop sees this
            if context.task is not None:
                context.task.state.abandon()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        error = self._close()
        if error is None or error is exc:
            return
        if exc is None:
            raise_preserving_context(error)
        add_note(exc, f"The worker of {self._label} failed as well: {describe(error)}")

    def __iter__(self) -> Iterator[T]:
        """Go on with the next item, also where an earlier loop has left off.

        Raises:
            RuntimeError: it has been read to its end before, or the block has ended, so that the
                loop would be empty.
        """
        self._check_opened()
        if self._was_read_to_its_end and not self._was_stopped:
            raise RuntimeError(f"this stream has been read to its end before{self._kept}")
        if self._closed is not None:
            raise RuntimeError(f"this stream is closed: read it before its block ends{self._kept}")
        return self

    def __next__(self) -> T:
        """Return the next item; block until there is one.

        Raises:
            BaseException: the exception of the producer, such as ``generate()``, after all items
                that came before it.
        """
        received: list[T] = []
        try:
            self._receive(received, 1)
        except _ENDED:
            pass
        except BaseException:
            self._unreturned += received
            raise
        # No call between here and the return: a Ctrl-C strikes at a call.
        if received:
            return received[0]
        self._was_read_to_its_end = True
        raise StopIteration

    def receive_many(self, max_items: int | None = None) -> list[T]:
        """Return all items that are ready, in a list; block until there is one. Empty at the end.

        One call into the event loop for all of them, which takes less time than one for each.

        Args:
            max_items: leave what is more than this for the next call.

        Raises:
            BaseException: as from ``next()``.
            TypeError, ValueError: *max_items* is not a whole number, or less than 1.
        """
        if max_items is not None:
            validate_max_items(max_items)
        received: list[T] = []
        try:
            self._receive(received, max_items)
        except _ENDED:
            pass
        except BaseException:
            self._unreturned += received
            raise
        return received

    def _receive(self, received: list[T], max_items: int | None) -> None:
        """Receive what is ready into a list of the caller's: there it is when an exception strikes.

        Raises:
            BaseException: as from `receive_many` of the stream.
        """
        stream = self._stream
        if self._unreturned:
            received[:] = self._unreturned[:max_items]
            del self._unreturned[:max_items]
            return

        async def add() -> None:
            received.extend(await stream.receive_many(max_items))

        try:
            self._call(add)
        except LoopGone:  # no other thread touches the stream any more
            with contextlib.suppress(anyio.WouldBlock):
                received.append(stream.receive_nowait())  # raises the end, or the error
                while self._has_item and (max_items is None or len(received) < max_items):
                    received.append(stream.receive_nowait())

    @property
    def _has_item(self) -> bool:
        assert self._context is not None
        assert self._context.task is not None
        return self._context.task.state.has_item

    def _rest(self) -> Iterator[T]:
        with contextlib.suppress(StopIteration):
            while True:
                yield self.__next__()

    def stop(self) -> None:
        """Ask the producer to end after the current step, as `ThreadStream.stop` does."""
        self._was_stopped = True
        self._stream.stop()

    def close(self) -> None:
        """Stop the producer, and wait until its thread has left it. The end of the block calls it.

        In a forked child it does nothing: the producer runs in the parent.

        Raises:
            BaseException: the exception of the producer, if no one has seen it. A Ctrl-C meanwhile,
                after the thread has left the producer.
        """
        if (error := self._close()) is not None:
            raise_preserving_context(error)

    def _close(self) -> BaseException | None:
        """Close it as `close` does. Returns the exception that `close` raises."""
        context = self._context
        if context is None or self._opened is None or self._tasks.home.is_in_parent:
            return None
        with self._lock:
            closed, is_first = self._closed, self._closed is None
            if closed is None:
                self._closed = closed = ThreadEvent()
        if not is_first:
            while not self._is_closed:
                closed.wait(CLOSE_POLL)
            return None
        assert context.task is not None
        state = context.task.state
        errors: list[BaseException] = []

        async def leave() -> None:
            try:
                await context.__aexit__(None, None, None)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as exc:
                errors.append(exc)

        try:
            state.abandon()
            self._call(leave, "join")
        except LoopGone:
            errors += filter(None, [state.close_and_take_error()])
        finally:
            self._is_closed = True
            closed.set()
        return errors.pop() if errors else None

    def wait_until_held(self) -> None:
        """Block until the model waits for space, as `TextStream.wait_until_held`. For tests.

        Raises:
            RuntimeError: nothing holds it: it has ended, or the stream is unbounded.
        """
        self._call(self._stream.wait_until_held)

    def __repr__(self) -> str:
        if self._opened is None:
            shown = f"not opened: 'with {self._name}(...) as stream:'>"
        else:
            _, _, shown = repr(self._opened).partition(" ")
        return f"<anystreamer.sync.{type(self).__name__} {shown}"

    @property
    def result(self) -> Any:
        """As `ThreadStream.result`: what the producer returned; None until the end."""
        return self._stream.result

    @property
    def ending(self) -> Ending | None:
        """As `ThreadStream.ending`: how the producer ended; None until then."""
        return self._stream.ending

    @property
    def _label(self) -> str:
        assert self._context is not None
        assert self._context.task is not None
        return self._context.task.name

    @property
    def _stream(self) -> StreamT:
        self._check_opened()
        assert self._opened is not None
        return self._opened

    def _check_opened(self) -> None:
        if self._opened is None:
            raise TypeError(
                f"{self._name}() must be opened first: "
                f"'with {self._name}(...) as stream:', then 'for item in stream:'"
            )

    def _misused(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self._name}() of anystreamer.sync is for code without an event loop: "
            f"'with {self._name}(...) as stream:', then 'for item in stream:'. "
            "Async functions use the one of anystreamer"
        )

    if not TYPE_CHECKING:  # type checkers refuse the same before the program runs
        __aiter__ = __await__ = __aenter__ = __aexit__ = _misused

    def _call(
        self, func: Callable[[], Awaitable[ResultT]], if_interrupted: IfInterrupted = "cancel"
    ) -> ResultT:
        return self._tasks.call_from_thread(func, if_interrupted)


class SyncThreadStream(SyncStream[ThreadStream[T], T]):
    """A `ThreadStream` for a ``with`` block and a ``for`` loop.

    Made by `anystreamer.sync.stream_from_thread` and `anystreamer.sync.stream_iterable`, and by a
    `SyncWorker`.
    """
