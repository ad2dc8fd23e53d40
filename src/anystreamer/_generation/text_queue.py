"""The queue of the drop-in streamer: items go from any thread to one consumer on the event loop."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from anyio import WouldBlock
from anyio.lowlevel import checkpoint

from .._bridge import Crossing, Sink, StreamState, ThreadStream

__all__ = ["TextQueue"]

# How often a delivery thread looks whether the generating thread is still alive (seconds).
LIFE_POLL = 0.1
# After generate() has raised, the code that called it may still end the stream. A thread of a pool
# lives on, so that its end tells nothing: it is given this long (seconds).
END_GRACE = 2.0


class TextQueue:
    """Has the methods of `asyncio.Queue` that subclasses of transformers' streamer call.

    Putting never waits, and is allowed in any thread. Getting is for the event loop in which the
    queue was made. An item that *is_end* returns true for ends the text of a generation; another
    text can follow.
    """

    def __init__(self, is_end: Callable[[Any], bool]) -> None:
        self.texts_ended = 0
        self._is_end = weakref.WeakMethod(is_end)  # of the streamer, which has this queue
        self._state = StreamState[Any]()
        self._state.start()
        self._stream = ThreadStream(self._state)
        self._crossing = Crossing(Sink(self._state))
        self._lock = threading.Lock()  # around starting a delivery thread
        self._delivery_thread: DeliveryThread | None = None
        self._unended_call: _EndedCall | None = None  # that no delivery thread watches
        self._getters = 0

    # -- putting

    def put_nowait(self, item: Any) -> None:
        """Add an item."""
        self.open()
        thread = self._delivery_thread
        if thread is not None:
            thread.submit(item)
            if (is_end := self._is_end()) is not None and is_end(item):
                self.texts_ended += 1
                self._delivery_thread = None  # a next generation can run in another thread
                thread.finish()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> _Done:
        """Add an item. What is returned can be awaited, and need not be."""
        self.put_nowait(item)
        return _Done()

    def full(self) -> bool:
        """Never: its size has no limit."""
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
            self._watch_unended_call()
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
        """Whether a generation has begun and not ended."""
        return self._delivery_thread is not None

    @property
    def loop_closed(self) -> bool:
        """Whether the event loop has ended under a generation."""
        return self._delivery_thread is not None and self._delivery_thread.loop_closed

    def open(self) -> bool:
        """Begin a generation in this thread, if none has begun. Returns whether it did."""
        with self._lock:
            self._unended_call = None
            thread = self._delivery_thread
            if thread is not None and not thread.has_failed:
                thread.serve_current_thread()
                return False
            self._start_delivery()
            return True

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
            call = _EndedCall(error, threading.current_thread(), perf_counter())
            if self._delivery_thread is not None:
                self._delivery_thread.ended_call = call
            else:
                self._unended_call = call
        if self._getters:
            self._watch_unended_call()

    def _watch_unended_call(self) -> None:
        with self._lock:
            call, self._unended_call = self._unended_call, None
            if call is not None and self._delivery_thread is None:
                self._start_delivery(call)

    def _start_delivery(self, call: _EndedCall | None = None) -> None:
        self._delivery_thread = DeliveryThread(self._state, self._crossing, call)
        self._delivery_thread.start()


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
    """How a call of ``generate()`` has ended that has not ended its text."""

    error: BaseException | None
    thread: threading.Thread
    at: float

    @property
    def is_over(self) -> bool:
        """Whether the code around the call has had its chance to end the text."""
        if not self.thread.is_alive():
            return True
        return self.error is not None and perf_counter() - self.at > END_GRACE

    @property
    def failure(self) -> RuntimeError:
        """What the consumer gets."""
        if self.error is None:
            return RuntimeError(
                "generate() has returned, but the text was not ended: it does not call the "
                "streamer, or an overridden end() or on_finalized_text() does not put stop_signal"
            )
        failure = RuntimeError(f"generate() did not return: it raised {type(self.error).__name__}")
        failure.__cause__ = self.error
        return failure


class DeliveryThread(threading.Thread):
    """Crosses to the loop in place of a thread that may outlive the loop, and must not wait for it.

    A crossing never returns from a loop that was closed under it. Then this thread is stuck, which
    is a daemon and holds nothing but the stream; the generating thread is not.
    """

    def __init__(
        self, state: StreamState[Any], crossing: Crossing, ended_call: _EndedCall | None
    ) -> None:
        super().__init__(name="anystreamer delivery", daemon=True)
        self.loop_closed = False
        self.has_failed = False  # it delivers nothing any more
        self.ended_call = ended_call
        self._served = threading.current_thread()
        self._state = state
        self._crossing = crossing
        self._queue = queue.SimpleQueue[Any]()

    def serve_current_thread(self) -> None:
        """Watch the thread that calls this from now on."""
        self._served = threading.current_thread()
        self.ended_call = None

    def submit(self, item: Any) -> None:
        """Deliver *item* soon. Never waits."""
        self._queue.put(item)

    def finish(self) -> None:
        """End, once everything has been delivered."""
        self._queue.put(_FINISH)

    def run(self) -> None:
        """Deliver items until the last, as seldom as the crossing budget asks."""
        crossing = self._crossing
        is_last = False
        while not is_last and not self._state.closed:
            items, is_last = self._next_items()
            crossing.sink.push(*items)
            try:
                if crossing.sink.has_pending:
                    crossing.flush()
            except KeyboardInterrupt as exc:  # it struck the loop just then; trio tells only us
                crossing.sink.push(_Failure(exc))
                is_last = False
            except RuntimeError:
                self.loop_closed = True
                return
            crossing.sleep_until_due()

    def _next_items(self) -> tuple[list[Any], bool]:
        """Wait for items. Returns all that are there, and whether the last is among them."""
        items: list[Any] = []
        try:
            items.append(self._queue.get(timeout=LIFE_POLL))
            while items[-1] is not _FINISH:
                items.append(self._queue.get_nowait())
        except queue.Empty:
            if not items and (failure := self._failure()) is not None:
                self.has_failed = True
                return [_Failure(failure)], True
            return items, False
        return items[:-1], True

    def _failure(self) -> RuntimeError | None:
        """What has kept the text from being ended, if nothing can end it any more."""
        if (call := self.ended_call) is not None:
            return call.failure if call.is_over else None
        if self._served.is_alive():
            return None
        return RuntimeError("generate() did not return: it raised, in a thread that has ended")


_FINISH = object()
