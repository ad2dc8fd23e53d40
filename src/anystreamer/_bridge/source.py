"""`Source`: where the items of a stream come from. Which thread makes them is decided later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from anyio import CapacityLimiter

from .context import StreamContext, ThreadContext
from .held_turns import check_limiter
from .producer import Producer
from .state import StreamState
from .stream import ThreadStream
from .worker_task import ThreadTask

__all__ = ["Source", "source_of"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Source(Generic[T]):
    """What makes the items of a stream, checked and ready to run in any thread."""

    name: str  #: of the public function, for messages on how to use it
    label: str  #: of the producer, for the log and for messages
    run: Callable[[Producer[T]], object]  #: blocks until all items have been made
    max_buffer_size: float

    def context(self, limiter: CapacityLimiter | None) -> StreamContext[ThreadStream[T]]:
        """The block that runs it in a thread of its own."""
        return _SourceContext(self, limiter)


class _SourceContext(ThreadContext[ThreadStream[T]]):
    def __init__(self, source: Source[T], limiter: CapacityLimiter | None) -> None:
        super().__init__(source.name, self._new_task)
        self.source = source
        self._limiter = limiter

    def _new_task(self) -> ThreadTask[ThreadStream[T]]:
        check_limiter(lambda: self._limiter)  # first: a state has something to close
        source = self.source
        state = StreamState[T](source.max_buffer_size)
        return _BlockingTask(
            source.label, state, ThreadStream(state), source.run, lambda: self._limiter
        )


class _BlockingTask(ThreadTask[ThreadStream[T]]):
    watches_cancellation = True


def source_of(context: StreamContext[ThreadStream[T]]) -> Source[T]:
    """The source of a stream that has not been opened, to run it in another thread."""
    assert isinstance(context, _SourceContext)
    return context.source
