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

# A text can still be ended for this long (seconds) after its call of generate(); after one that
# raised, also after the latest item that code on the loop has put. The end of its thread says too
# little: a thread of a pool lives on, and what a thread leaves on the loop can take its time.
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
        self._producer = self._loop_thread  # the thread that put something last
        self._loop_put_at: float | None = None  # the loop has put something since (perf_counter)
        self._ended_call: _EndedCall | None = None  # and nothing has followed it
        self._late_ends = 0  # of texts before this one, which the loop has still to put

    # -- putting

    def put_nowait(self, item: Any) -> None:
        """Add an item."""
        if threading.current_thread() is self._loop_thread:
            self._open_on_loop()
        else:
            self.open()
        if self._is_end_of_text(item):  # first: once the consumer has it, the next call can begin
            self._end()
        if not self._state.closed:
            self._delivery.submit(self, item)

    def _open_on_loop(self) -> None:
        """Go on with the text of a thread that has left its items to the loop, or begin one."""
        with self._lock:
            begins = not (self._text_is_open or self._late_ends)
            self._text_is_open |= begins
            self._loop_put_at = perf_counter()
        if begins:
            self._watch()

    def _end(self) -> None:
        is_on_loop = threading.current_thread() is self._loop_thread
        with self._lock:
            self._loop_put_at = None
            if is_on_loop and self._late_ends:
                self._late_ends -= 1
                if self._ended_call is None or self._ended_call.error is not None:
                    return  # the text that follows is not this one
            else:
                self.texts_ended += 1
            self._text_is_open = False
            self._ended_call = None
            if not is_on_loop:
                self._late_ends = 0

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
        if item is _FAILURE or self._is_end_of_text(item):  # the loop can end after this
            await self._delivery.finish_delivery()
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

    def _is_end_of_text(self, item: Any) -> bool:
        return (is_end := self._is_end()) is not None and is_end(item)

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
            self._leave_ended_call()
            begins = not self._text_is_open
            self._text_is_open = True
            self._producer = threading.current_thread()
            self._loop_put_at = None
        if begins:
            self._watch()
        return begins

    def _leave_ended_call(self) -> None:
        """Something follows the call: its error was handled, or the loop puts its end later."""
        call, self._ended_call = self._ended_call, None
        if call is not None and call.error is None and self._text_is_open:
            self._text_is_open = False
            self._late_ends += 1

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
            self._leave_ended_call()
            return self.texts_ended

    def call_ended(self, error: BaseException | None, texts_ended: int) -> None:
        """A call in this thread has raised *error*, or returned.

        *texts_ended* is what `call_began` returned.
        """
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
        """Whether the thread that put something last runs; what the loop puts does not count."""
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
        if not self._getters:
            return None
        if (call := self._ended_call) is not None:
            return call if call.is_over(self._loop_put_at) else None
        if producer_is_alive or not self._text_is_open or self._loop_put_at is not None:
            return None
        return _EndedCall.unseen(self._producer)


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

    def is_over(self, loop_put_at: float | None) -> bool:
        """Whether the code around the call, or on the loop, has had its chance to end the text."""
        seconds = perf_counter() - max(self.at, loop_put_at or 0.0)
        thread_has_ended = not self.thread.is_alive()
        if self.error is None:
            return thread_has_ended and loop_put_at is None and seconds > END_GRACE
        return seconds > END_GRACE or (thread_has_ended and loop_put_at is None)

    @property
    def failure(self) -> RuntimeError:
        """What the consumer gets."""
        failure = RuntimeError(self.message)
        failure.__cause__ = self.error
        return failure
