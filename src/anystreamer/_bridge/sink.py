"""`Sink`, the send half of a stream: for all its producers, in any thread."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from anyio import get_cancelled_exc_class

from .._errors import wrap_control_flow_exception
from .join import SafeEvent
from .state import StreamState

__all__ = ["Sink"]

T = TypeVar("T")


class Sink(Generic[T]):
    """The send half of a stream, for the producer of its items, in any thread.

    Made on the loop.
    """

    def __init__(self, state: StreamState[T]) -> None:
        self._state = state
        self._cancellation = get_cancelled_exc_class()

    def push(self, *items: T) -> None:
        """Add items, which `publish` delivers. Drops them if they will not be read."""
        self._state.push(*items)

    def publish(self) -> None:
        """Deliver the items that were pushed. On the loop."""
        self._state.publish()

    @property
    def has_pending(self) -> bool:
        """Whether items were pushed and are not yet delivered."""
        return bool(self._state.pending)

    @property
    def is_full(self) -> bool:
        """Whether `max_buffer_size` items wait for the consumer."""
        return self._state.is_full

    async def wait_for_space(self) -> None:
        """Wait until the consumer has taken half of the items or closed the stream. On the loop."""
        self._state.space_available = space = SafeEvent()
        self._state.hold()
        try:
            await space.wait()
        finally:
            self._state.is_held = False

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, after its items. The first error counts."""
        self._state.fail(wrap_control_flow_exception(error, self._cancellation))

    def succeed(self, result: Any) -> None:
        """Keep what the producer has returned."""
        self._state.result = result
