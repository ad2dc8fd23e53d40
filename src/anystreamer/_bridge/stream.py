"""`ThreadStream`, the receive half: what a consumer holds, on the event loop."""

from __future__ import annotations

from typing import Generic, NoReturn, TypeVar

from anyio import BusyResourceError, ClosedResourceError, EndOfStream, Event, WouldBlock
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._errors import raise_preserving_context
from .state import NO_WAITER, Phase, StreamState

__all__ = ["ThreadStream"]

T = TypeVar("T")


class ThreadStream(ObjectReceiveStream[T], Generic[T]):
    """What a blocking producer emits, as an `anyio.abc.ObjectReceiveStream`. The loop's side.

    Made by `stream_from_thread` and `stream_iterable`. Iterate over it, or call `receive`.
    """

    def __init__(self, state: StreamState[T]) -> None:
        self._state = state
        self._receiving = False

    async def receive(self) -> T:
        """Return the next item. Always a checkpoint; a cancelled call loses no item.

        Raises:
            anyio.EndOfStream: the producer has returned, or was stopped, and all has been received.
            anyio.ClosedResourceError: the stream was closed, or its block left.
            anyio.BusyResourceError: another task is receiving.
            BaseException: what the producer raised, after all that it emitted before.
        """
        if self._receiving:
            raise BusyResourceError("receiving from")
        state = self._state
        self._receiving = True
        try:
            # Checkpoint first, then take: nothing can be lost between the two. Waiting is a
            # checkpoint.
            if state.has_item or state.closed or state.has_exited:
                await checkpoint()
            else:
                await checkpoint_if_cancelled()
                await self._wait()
            while not state.closed:
                state.drain_pending()
                try:
                    return state.take()
                except WouldBlock:
                    await self._wait()
                except EndOfStream:
                    break
            # Where a scope ended the stream, the end must not be seen before the cancellation.
            if state.abandoned and not state.closed:
                await checkpoint()
        finally:
            self._receiving = False
        self._raise_end()

    def receive_nowait(self) -> T:
        """Return the next item without waiting: in the event loop, or after that has ended.

        Raises:
            anyio.WouldBlock: there is none yet.
            anyio.BusyResourceError: another task is receiving.
            BaseException: as from `receive`.
        """
        if self._receiving:
            raise BusyResourceError("receiving from")
        state = self._state
        if not state.closed:
            state.drain_pending()
            try:
                return state.take()
            except EndOfStream:
                pass
        self._raise_end()

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except EndOfStream:
            pass
        raise StopAsyncIteration

    def stop(self) -> None:
        """Ask the producer to end after the current step; what it has made can still be received.

        Safe from any task or thread and from a signal handler; calling it again changes nothing.
        """
        self._state.stop_requested = True

    async def aclose(self) -> None:
        """Stop the producer, drop what was not received, and wait until the worker has left it."""
        state = self._state
        state.close()
        await state.worker_exited.wait()
        state.finalize()

    def __repr__(self) -> str:
        state = self._state
        if state.closed:
            shown = "closed"
        elif state.has_exited:
            shown = "ended"
        else:
            shown = "waiting for its turn" if state.phase is Phase.QUEUED else "running"
        return f"<anystreamer.{type(self).__name__} {shown}>"

    def _raise_end(self) -> NoReturn:
        state = self._state
        if state.closed:
            raise ClosedResourceError
        state.finalize()
        if state.error is not None:
            state.error_raised = True
            raise_preserving_context(state.error)
        raise EndOfStream

    async def _wait(self) -> None:
        # As a `SafeEvent` is waited for, with less between: this happens for each item.
        event = Event()
        self._state.receiver_waiting = event
        self._state.receive_began.set()
        try:
            await event.wait()
        finally:
            self._state.receiver_waiting = NO_WAITER
