"""The queue of the drop-in streamer: items go from any thread to one consumer on the event loop."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from anyio import WouldBlock
from anyio.lowlevel import checkpoint

from .._bridge import Crossing, Sink, StreamState, ThreadStream, uninterrupted
from .delivery_thread import DeliveryThread

__all__ = ["TextQueue"]

# After generate() has raised, the code that called it can still end the text, for this long
# (seconds). The end of its thread cannot be waited for: a thread of a pool lives on.
END_GRACE = 2.0
# An item in whose place an error is raised.
_FAILURE = object()


class TextQueue:
    """Has the methods of `asyncio.Queue` that subclasses of transformers' streamer call.

    Putting never waits, and is allowed in any thread. Getting is for the event loop in which the
    queue was made. An item for which *is_end* returns true ends the text of a generation; another
    text can follow.

    `DeliveryThread` says why the thread that generates does not deliver them itself.
    """

    def __init__(self, is_end: Callable[[Any], bool]) -> None:
        self.texts_ended = 0
        self._is_end = weakref.WeakMethod(is_end)  # of the streamer, which has this queue
        self._state = StreamState[Any]()
        self._state.start()
        self._stream = ThreadStream(self._state)
        self._sink = Sink[Any](self._state)
        self._delivery = DeliveryThread.of_this_loop()
        self.crossing = Crossing(self._state)  #: for the delivery thread
        self._failures: deque[BaseException] = deque()  # one for each _FAILURE among the items
        self._getters = 0  # calls of get() that wait
        self._loop_thread = threading.current_thread()
        self._lock = threading.Lock()  # of the following
        self._text_is_open = False  # a text has begun and not ended
        self._producer = self._loop_thread  # of the open text
        self._ended_call: _EndedCall | None = None

    # -- putting

    def put_nowait(self, item: Any) -> None:
        """Add an item."""
        if threading.current_thread() is not self._loop_thread:
            self.open()
        else:  # by a callback, as a subclass can: for a thread that can have ended since
            self._open_for_another_thread()
        if not self._state.closed:
            self._delivery.submit(self, item)
        if (is_end := self._is_end()) is not None and is_end(item):
            with self._lock:
                self.texts_ended += 1
                self._text_is_open = False
                self._ended_call = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> _Done:
        """Add an item. What is returned can be awaited, and need not be."""
        self.put_nowait(item)
        return _Done()

    def full(self) -> bool:
        """Never: the size has no limit."""
        return False

    # -- getting

    @uninterrupted  # or it would lose an item
    async def get(self) -> Any:
        """Return the next item.

        Raises:
            anyio.ClosedResourceError: the streamer was closed.
            RuntimeError: ``generate()`` has ended without ending the text.
        """
        self._getters += 1
        try:
            self._watch()
            item = await self._stream.receive()
        finally:
            self._getters -= 1
        return self._checked(item)

    def get_nowait(self) -> Any:
        """Return the next item. Raises `queue.Empty` if there is none."""
        try:
            item = self._stream.receive_nowait()
        except WouldBlock:
            raise queue.Empty from None
        return self._checked(item)

    def _checked(self, item: Any) -> Any:
        if item is _FAILURE:
            raise self._failures.popleft()
        return item

    def qsize(self) -> int:
        """How many items can be got without waiting."""
        return len(self._state.pending) + self._state.buffered

    def empty(self) -> bool:
        """Whether no item can be got without waiting."""
        return not self._state.has_item

    # -- for the streamer

    @property
    def should_stop(self) -> bool:
        """Whether the model is to end."""
        return self._state.should_end

    @property
    def is_abandoned(self) -> bool:
        """Whether the rest of the text will not be received."""
        return self._state.abandoned

    @property
    def is_open(self) -> bool:
        """Whether a text has begun and not ended."""
        return self._text_is_open

    def open(self) -> bool:
        """Go on with a text in this thread, or begin one. Returns whether it has begun."""
        with self._lock:
            begins = not self._text_is_open
            is_new = begins or self._ended_call is not None
            self._text_is_open = True
            self._producer = threading.current_thread()
            self._ended_call = None
        if is_new:
            self._watch()
        return begins

    def _open_for_another_thread(self) -> None:
        with self._lock:
            begins = not self._text_is_open
            self._text_is_open = True
        if begins:
            self._watch()

    def stop(self) -> None:
        """Ask the model to end after the current step. From any thread or a signal handler."""
        self._stream.stop()

    def abandon(self) -> None:
        """The rest will not be received."""
        self._state.abandon()

    def close(self) -> None:
        """Drop everything, and stop the model. On the loop, or from a finalizer."""
        self._state.close(cancel_worker=False)  # the thread is the caller's own
        self._state.close_and_take_error()

    def call_began(self) -> int:
        """A call begins in this thread. Returns what `call_ended` needs."""
        with self._lock:
            self._ended_call = None
            return self.texts_ended

    def call_ended(self, error: BaseException | None, texts_ended: int) -> None:
        """A call in this thread has raised *error*, or returned; so many texts had ended before."""
        with self._lock:
            if self.texts_ended != texts_ended:
                return
            self._ended_call = _EndedCall.of(error)
        self._watch()

    @property
    def loop_closed(self) -> bool:
        """Whether the event loop has ended under a generation."""
        return self._delivery.loop_closed

    def _watch(self) -> None:
        if self.is_watched:
            self._delivery.watch(self)

    # -- for the delivery thread

    def push(self, item: Any) -> bool:
        """Add an item, for the next crossing. Returns whether there is something to deliver."""
        self._sink.push(item)
        return self._sink.has_pending

    def push_failure(self, error: BaseException) -> None:
        """Add an error, in its place among the items."""
        self._failures.append(error)
        self._sink.push(_FAILURE)

    @property
    def is_watched(self) -> bool:
        """Whether the text is open. A call that has ended matters as long as a consumer waits."""
        if self._state.closed:
            return False
        return self._text_is_open if self._ended_call is None else bool(self._getters)

    @property
    def producer_is_alive(self) -> bool:
        """Whether the thread that put the last item runs."""
        return self._producer.is_alive()

    def is_over(self, *, producer_is_alive: bool) -> bool:
        """Whether the text cannot be ended any more by its thread, and the consumer waits."""
        with self._lock:
            return self._call_if_over(producer_is_alive) is not None

    def items_if_over(self, *, producer_is_alive: bool) -> list[Any]:
        """What the consumer gets if the text cannot be ended any more."""
        with self._lock:
            if (call := self._call_if_over(producer_is_alive)) is None:
                return []
            self._failures.append(call.failure)
            self._text_is_open = False
            self._ended_call = None
            return [_FAILURE]

    def _call_if_over(self, producer_is_alive: bool) -> _EndedCall | None:
        call = self._ended_call
        if call is None and self._text_is_open and not producer_is_alive:
            call = _EndedCall.unseen(self._producer)
        return call if call is not None and self._getters and call.is_over else None


class _Done:
    """The result of `TextQueue.put`: awaiting it is a checkpoint."""

    def __await__(self) -> Generator[Any, Any, None]:
        return checkpoint().__await__()


@dataclass(frozen=True, slots=True)
class _EndedCall:
    """A call of ``generate()`` that has ended, and has not ended its text."""

    thread: threading.Thread
    at: float
    message: str
    error: BaseException | None

    @classmethod
    def of(cls, error: BaseException | None) -> _EndedCall:
        """A call that has just raised *error*, or returned, in this thread."""
        if error is not None:
            message = f"generate() did not return: it raised {type(error).__name__}"
        else:
            message = (
                "generate() has returned, but the text was not ended: it does not call the "
                "streamer, or an overridden end() or on_finalized_text() does not put stop_signal"
            )
        return cls(threading.current_thread(), perf_counter(), message, error)

    @classmethod
    def unseen(cls, thread: threading.Thread) -> _EndedCall:
        """A call of something else than a model of transformers, in a thread that has ended."""
        message = "generate() did not return: it raised, in a thread that has ended"
        return cls(thread, perf_counter(), message, None)

    @property
    def is_over(self) -> bool:
        """Whether the code around the call has had its chance to end the text."""
        if not self.thread.is_alive():
            return True
        return self.error is not None and perf_counter() - self.at > END_GRACE

    @property
    def failure(self) -> RuntimeError:
        """What the consumer gets."""
        failure = RuntimeError(self.message)
        failure.__cause__ = self.error
        return failure
