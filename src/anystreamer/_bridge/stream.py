"""`ThreadStream`, the receive half of a stream: for the consumer, on the event loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from anyio import BusyResourceError, ClosedResourceError, EndOfStream, Event, WouldBlock
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._errors import raise_preserving_context
from .ending import Ending
from .state import NO_WAITER, Phase, StreamState
from .validation import validate_max_items

__all__ = ["ThreadStream"]

T = TypeVar("T")
Result = TypeVar("Result")


class ThreadStream(ObjectReceiveStream[T], Generic[T]):
    """The items of a blocking producer, as an `anyio.abc.ObjectReceiveStream`.

    Made by `stream_from_thread` and `stream_iterable`. Iterate over it, or call `receive`.
    """

    _kept = ""  # says where the items still are once the stream has ended
    _read_all = ""  # names the method that returns the rest at once

    def __init__(self, state: StreamState[T]) -> None:
        self._state = state
        self._receiving = False
        self._was_read_to_its_end = False

    async def receive(self) -> T:
        """Return the next item. Always a checkpoint. A cancelled call loses no item.

        Raises:
            anyio.EndOfStream: all items were received, and the producer has returned or was
                stopped.
            anyio.ClosedResourceError: the stream was closed, or its block was left.
            anyio.BusyResourceError: another task is receiving.
            RuntimeError: in another event loop than the stream's.
            BaseException: the producer's own exception, after the items that it emitted before.
        """
        return await self._receive(self._state.take)

    async def receive_many(self, max_items: int | None = None) -> list[T]:
        """Return all items that are ready, in a list; wait for one if there is none.

        One checkpoint for all of them, which takes less time than one for each. A cancelled call
        loses no item. The items are those that `receive` would return one after the other.

        Args:
            max_items: leave what is more than this for the next call.

        Raises:
            anyio.EndOfStream: as from `receive`, and all other exceptions too. The end, or the
                error, comes from the call after the last items.
            TypeError, ValueError: *max_items* is not a whole number, or less than 1.
        """
        limit = math.inf if max_items is None else validate_max_items(max_items)
        return await self._receive(partial(self._state.take_many, limit))

    async def _receive(self, take: Callable[[], Result]) -> Result:
        """Return what *take* takes, as soon as there is an item."""
        state = self._state
        state.home.check()
        if self._receiving:
            raise BusyResourceError("receiving from")
        self._receiving = True
        try:
            # Checkpoint first, then take, so that no item is lost between the two. Waiting is a
            # checkpoint as well.
            if state.has_item or state.closed or state.has_exited:
                await state.home.checkpoint()
            else:
                await checkpoint_if_cancelled()
                await self._wait()
            while not state.closed:
                if state.pending:
                    state.drain_pending()
                try:
                    return take()
                except WouldBlock:
                    await self._wait()
                except EndOfStream:
                    break
            # If a scope ended the stream, its cancellation must be seen, and not the end.
            if state.abandoned and not state.closed:
                await checkpoint()
        finally:
            self._receiving = False
        self._raise_end()

    def receive_nowait(self) -> T:
        """Return the next item without waiting: in the event loop, or after the loop has ended.

        Raises:
            anyio.WouldBlock: there is no item yet.
            anyio.BusyResourceError: another task is receiving.
            RuntimeError: in a forked child, where no thread of the producer is.
            BaseException: as from `receive`.
        """
        state = self._state
        if not (state.has_exited or state.closed):
            state.home.check_process()
        if self._receiving:
            raise BusyResourceError("receiving from")
        if not state.closed:
            state.drain_pending()
            try:
                return state.take()
            except EndOfStream:
                pass
        self._raise_end()

    def __aiter__(self) -> Self:
        """Go on with the next item, also where an earlier loop has left off.

        Raises:
            RuntimeError: it has been read to its end before, so that the loop would be empty.
        """
        # After stop(), a loop over what is left can find nothing.
        if self._was_read_to_its_end and not self._state.stop_requested:
            raise RuntimeError(f"this stream has been read to its end before{self._kept}")
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive(self._state.take)  # `receive`, in fewer steps
        except EndOfStream:
            self._was_read_to_its_end = True
        raise StopAsyncIteration

    @property
    def result(self) -> Any:
        """What the producer returned; a generator's return value. None until the end.

        It stays None if the producer raised, also the `GenerationStopped` that ended it.
        """
        return None if self.ending is None else self._state.result

    @property
    def ending(self) -> Ending | None:
        """How the producer ended; None until then. Set before the end is seen."""
        return self._state.ending

    def stop(self) -> None:
        """Ask the producer to end after the current step. Its items can still be received.

        Safe from any task, any thread and a signal handler. Calling it again changes nothing.
        """
        self._state.request_stop()

    async def aclose(self) -> None:
        """Stop the producer, drop all items not received, and wait until its thread has left it.

        In a forked child it does nothing: the thread is in the parent.

        Raises:
            RuntimeError: in another event loop than the stream's.
        """
        state = self._state
        if state.home.is_in_parent:
            return
        state.home.check()
        state.close()
        await state.worker_exited.wait()
        state.finalize()
        state.drop_items()

    async def wait_until_held(self) -> None:
        """Wait until the producer waits for space: `max_buffer_size` items were not received.

        From then on it makes nothing until an item is received or the stream is stopped. It is for
        tests, which can rely on that without a pause. It looks at no clock.

        Raises:
            RuntimeError: the producer has ended, or the stream is unbounded: then nothing holds it.
                Or this is another event loop than the stream's.
        """
        state = self._state
        state.home.check()
        if state.max_buffer_size == math.inf:
            raise RuntimeError("the stream is unbounded, so nothing holds it: pass max_buffer_size")
        await state.wait_until_held()
        if state.has_exited:
            raise RuntimeError("the producer has ended, so nothing holds it")

    def __repr__(self) -> str:
        state = self._state
        parts = [self._phase(), self._how(), self._amount()]
        if not state.closed and (waiting := self._waiting()):
            parts.append(f"{waiting} waiting")
        return f"<anystreamer.{type(self).__name__} {', '.join(filter(None, parts))}>"

    def _phase(self) -> str:
        state = self._state
        if state.closed:
            return "closed"
        if state.has_exited:
            return "ended"
        return "waiting for its turn" if state.phase is Phase.QUEUED else "running"

    def _how(self) -> str:
        """How it ended, if that is known and worth a word."""
        ending = self.ending
        return "" if ending is None or ending is Ending.ENDED else str(ending)

    def _amount(self) -> str:
        """How much of it there is."""
        return ""

    def _waiting(self) -> int:
        """How many items wait for this consumer."""
        return self._state.pushed - self._state.taken

    def _raise_end(self) -> NoReturn:
        state = self._state
        if state.closed:
            raise ClosedResourceError(
                f"this stream is closed: read it before its block ends{self._kept}"
            )
        state.finalize()
        if state.error is not None:
            state.error_raised = True
            raise_preserving_context(state.error)
        raise EndOfStream

    async def _rest(self) -> list[T]:
        """Return all items up to the end."""
        items: list[T] = []
        with suppress(EndOfStream):
            while True:
                items += await self.receive_many()
        self._was_read_to_its_end = True
        return items

    def _misused(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is read with 'async for item in stream:'"
            f"{self._read_all}. Without an event loop use anystreamer.sync"
        )

    if not TYPE_CHECKING:  # type checkers refuse the same before the program runs
        __await__ = __iter__ = __next__ = __enter__ = __exit__ = _misused

    async def _wait(self) -> None:
        # The same as `SafeEvent.wait`, in fewer steps, because this happens for each item.
        event = Event()
        self._state.receiver_waiting = event
        self._state.receive_began.set()
        if self._state.pending:  # from a producer that has not seen that we wait
            event.set()
        try:
            await event.wait()
        finally:
            self._state.receiver_waiting = NO_WAITER
