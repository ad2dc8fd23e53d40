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

from .._bridge import Crossing, Sink, StreamState, ThreadStream

__all__ = ["TextQueue"]

# How often the delivery thread looks whether the text can still be ended (seconds).
LIFE_POLL = 0.1
# After generate() has raised, the code that called it can still end the text. A thread of a pool
# lives on, so that its end tells nothing: the code is given this long (seconds).
END_GRACE = 2.0
# An item in whose place an error is raised.
_FAILURE = object()


class TextQueue:
    """Has the methods of `asyncio.Queue` that subclasses of transformers' streamer call.

    Putting never waits, and is allowed in any thread. Getting is for the event loop in which the
    queue was made. An item for which *is_end* returns true ends the text of a generation; another
    text can follow.

    A delivery thread crosses to the loop in place of the generating thread, which can outlive the
    loop and must not wait for it: a crossing never returns from a loop that was closed under it.
    Then the delivery thread is stuck, which is a daemon and holds nothing but this queue. It runs
    while there is something to deliver, or to watch: a text that may never be ended.
    """

    def __init__(self, is_end: Callable[[Any], bool]) -> None:
        self.texts_ended = 0
        self.loop_closed = False  #: the event loop has ended under a generation
        self._is_end = weakref.WeakMethod(is_end)  # of the streamer, which has this queue
        self._state = StreamState[Any]()
        self._state.start()
        self._stream = ThreadStream(self._state)
        self._sink = Sink[Any](self._state)
        self._crossing = Crossing(self._state)
        self._failures: deque[BaseException] = deque()  # one for each _FAILURE among the items
        self._submitted = queue.SimpleQueue[Any]()  # for the delivery thread
        self._getters = 0  # calls of get() that wait
        self._lock = threading.Lock()  # of the following
        self._delivers = False  # the delivery thread runs
        self._text_is_open = False  # a text has begun and not ended
        self._producer = threading.current_thread()  # of the open text
        self._ended_call: _EndedCall | None = None

    # -- putting

    def put_nowait(self, item: Any) -> None:
        """Add an item."""
        self.open()
        self._submitted.put(item)
        if (is_end := self._is_end()) is not None and is_end(item):
            with self._lock:
                self.texts_ended += 1
                self._text_is_open = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> _Done:
        """Add an item. What is returned can be awaited, and need not be."""
        self.put_nowait(item)
        return _Done()

    def full(self) -> bool:
        """Never: the size has no limit."""
        return False

    # -- getting

    async def get(self) -> Any:
        """Return the next item.

        Raises:
            anyio.ClosedResourceError: the streamer was closed.
            RuntimeError: ``generate()`` has ended without ending the text.
        """
        self._getters += 1
        try:
            with self._lock:
                if self._text_is_open or self._ended_call is not None:
                    self._start_delivery()
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
            self._text_is_open = True
            self._producer = threading.current_thread()
            self._ended_call = None
            self._start_delivery()
        return begins

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

    def call_ended(self, error: BaseException | None) -> None:
        """A call in this thread has raised *error*, or returned, and has not ended its text."""
        with self._lock:
            self._ended_call = _EndedCall.of(error)
            if self._getters:
                self._start_delivery()

    # -- the delivery thread

    def _start_delivery(self) -> None:
        if not (self._delivers or self.loop_closed or self._state.closed):
            self._delivers = True
            threading.Thread(target=self._deliver, name="anystreamer delivery", daemon=True).start()

    def _deliver(self) -> None:
        """Deliver what is submitted, as seldom as the crossing budget asks."""
        sink, crossing = self._sink, self._crossing
        while items := self._next_items():
            sink.push(*items)
            try:
                if sink.has_pending:
                    crossing.flush()
            except KeyboardInterrupt as exc:  # it struck the loop just then; trio raises it here
                self._failures.append(exc)
                sink.push(_FAILURE)
            except RuntimeError:
                self.loop_closed = True
                return
            crossing.sleep_until_due()

    def _next_items(self) -> list[Any]:
        """Wait for items. Returns all that are there; none if the thread is to end."""
        items: list[Any] = []
        while not items and not self._state.closed:
            is_watching = self._text_is_open or self._ended_call is not None
            try:
                items.append(self._submitted.get(timeout=LIFE_POLL if is_watching else 0))
                while True:
                    items.append(self._submitted.get_nowait())
            except queue.Empty:
                if not items and not self._watch(items):
                    break
        return items

    def _watch(self, items: list[Any]) -> bool:
        """Look whether the text can still be ended. Returns whether the thread is to go on."""
        with self._lock:
            # First: a thread that has ended puts nothing more, but it can have put something last.
            is_alive = self._producer.is_alive()
            if not self._submitted.empty():
                return True
            call = self._ended_call
            if call is None and self._text_is_open and not is_alive:
                call = _EndedCall.unseen(self._producer)
            if call is not None and self._getters and call.is_over:
                self._failures.append(call.failure)
                items.append(_FAILURE)
                self._text_is_open = False
                self._ended_call = None
                return True
            # A call that has ended matters as long as a consumer waits.
            self._delivers = bool(self._getters) if call is not None else self._text_is_open
            return self._delivers


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
