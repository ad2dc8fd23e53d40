"""The queue of the drop-in streamer: items go from any thread to one consumer on the event loop."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from anyio import WouldBlock
from anyio.lowlevel import checkpoint

from .._bridge import Sink, StreamState, ThreadStream

__all__ = ["TextQueue"]

# How often the watching thread looks whether the text can still be ended (seconds).
LIFE_POLL = 0.1
# After generate() has raised, the code that called it can still end the text. A thread of a pool
# lives on, so that its end tells nothing: the code is given this long (seconds).
END_GRACE = 2.0


class TextQueue:
    """Has the methods of `asyncio.Queue` that subclasses of transformers' streamer call.

    Putting never waits, and is allowed in any thread. Getting is for the event loop in which the
    queue was made. An item for which *is_end* returns true ends the text of a generation; another
    text can follow.

    The generating thread is the caller's. It can outlive the loop, so it must never wait for the
    loop: a crossing never returns from a loop that was closed under it. Putting therefore only asks
    the loop, by *call_soon*, to deliver soon. That wakes no other thread than the loop's. While a
    text may never be ended, a thread watches the generating one. It holds nothing but this queue.

    Args:
        is_end: whether an item ends the text; a method of the streamer, which has this queue.
        call_soon: calls a function on the loop, soon. Raises RuntimeError where the loop has ended.
    """

    def __init__(
        self, is_end: Callable[[Any], bool], call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self.texts_ended = 0
        self.loop_closed = False  #: the event loop has ended under a generation
        self._is_end = weakref.WeakMethod(is_end)
        self._call_soon = call_soon
        self._delivery_is_planned = False  # the loop was asked, and has not begun to deliver
        self._state = StreamState[Any]()
        self._state.start()
        self._stream = ThreadStream(self._state)
        self._sink = Sink[Any](self._state)
        self._endings = queue.SimpleQueue[None]()  # a text was ended: for the watching thread
        self._getters = 0  # calls of get() that wait
        self._lock = threading.Lock()  # of the following, and of pushing: any thread can put
        self._is_watched = False  # the watching thread runs
        self._text_is_open = False  # a text has begun and not ended
        self._producer = threading.current_thread()  # of the open text
        self._ended_call: _EndedCall | None = None

    # -- putting

    def put_nowait(self, item: Any) -> None:
        """Add an item."""
        with self._lock:
            self._open()
            self._sink.push(item)
        self._plan_delivery()
        if (is_end := self._is_end()) is not None and is_end(item):
            with self._lock:
                self.texts_ended += 1
                self._text_is_open = False
            self._endings.put(None)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> _Done:
        """Add an item. What is returned can be awaited, and need not be."""
        self.put_nowait(item)
        return _Done()

    def full(self) -> bool:
        """Never: the size has no limit."""
        return False

    def _plan_delivery(self) -> None:
        """Have the loop deliver what was pushed, unless it is about to."""
        if self._delivery_is_planned or self.loop_closed:
            return
        self._delivery_is_planned = True
        try:
            self._call_soon(self._deliver)
        except RuntimeError:
            self.loop_closed = True

    def _deliver(self) -> None:
        self._delivery_is_planned = False  # first: what is pushed from now on plans another one
        self._sink.publish()

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
                    self._start_watch()
            item = await self._stream.receive()
        finally:
            self._getters -= 1
        if isinstance(item, _Failure):
            raise item.error
        return item

    def get_nowait(self) -> Any:
        """Return the next item. Raises `queue.Empty` if there is none."""
        try:
            item = self._stream.receive_nowait()
        except WouldBlock:
            raise queue.Empty from None
        if isinstance(item, _Failure):
            raise item.error
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
            return self._open()

    def _open(self) -> bool:
        begins = not self._text_is_open
        self._text_is_open = True
        self._producer = threading.current_thread()
        self._ended_call = None
        self._start_watch()
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
                self._start_watch()

    # -- the watching thread

    def _start_watch(self) -> None:
        if not (self._is_watched or self.loop_closed or self._state.closed):
            self._is_watched = True
            threading.Thread(target=self._watch, name="anystreamer watch", daemon=True).start()

    def _watch(self) -> None:
        """Look whether the text can still be ended, until it has been."""
        while self._look():
            with suppress(queue.Empty):
                self._endings.get(timeout=LIFE_POLL)

    def _look(self) -> bool:
        """End a text that nothing else can end. Returns whether to look again."""
        with self._lock:
            call = self._ended_call
            # A thread that has ended has put its last item: pushing takes the lock.
            if call is None and self._text_is_open and not self._producer.is_alive():
                call = _EndedCall.unseen(self._producer)
            fails = call is not None and self._getters > 0 and call.is_over
            if call is not None and fails:
                self._sink.push(_Failure(call.failure))
                self._text_is_open = False
                call = self._ended_call = None
            # A call that has ended matters as long as a consumer waits.
            is_open = bool(self._getters) if call is not None else self._text_is_open
            self._is_watched = is_open and not (self._state.closed or self.loop_closed)
            goes_on = self._is_watched
        if fails:
            self._plan_delivery()
        return goes_on


class _Done:
    """The result of `TextQueue.put`: awaiting it is a checkpoint."""

    def __await__(self) -> Generator[Any, Any, None]:
        return checkpoint().__await__()


@dataclass(frozen=True, slots=True)
class _Failure:
    """An item that is raised."""

    error: BaseException


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
