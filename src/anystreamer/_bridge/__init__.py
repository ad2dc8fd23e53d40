"""A blocking producer in a worker thread becomes an async stream. Needs anyio alone."""

from .api import stream_from_thread, stream_iterable
from .context import SingleErrorContext, StreamContext, ThreadContext, UngroupedTaskGroup
from .delivery import QUEUE_POLL, Crossing, guard
from .detached import DetachedContext, DetachedTasks, LoopGone
from .emit import Emit, Stopping
from .home import call_after_fork
from .join import (
    JOIN_POLL,
    SafeEvent,
    ThreadEvent,
    active_threads,
    cancel_again,
    run_sync_joined,
    track_active_thread,
)
from .observing import Statistics, open_streams, statistics
from .producer import Producer
from .sink import Sink
from .source import Source, source_of
from .state import Phase, StreamState
from .stream import ThreadStream
from .thread_condition import ThreadCondition
from .validation import validate_buffer_size, validate_limiter
from .worker_task import ThreadTask, WorkerTask, close_if_unstarted, has_waiters

__all__ = [
    "JOIN_POLL",
    "QUEUE_POLL",
    "Crossing",
    "DetachedContext",
    "DetachedTasks",
    "Emit",
    "LoopGone",
    "Phase",
    "Producer",
    "SafeEvent",
    "SingleErrorContext",
    "Sink",
    "Source",
    "Statistics",
    "Stopping",
    "StreamContext",
    "StreamState",
    "ThreadCondition",
    "ThreadContext",
    "ThreadEvent",
    "ThreadStream",
    "ThreadTask",
    "UngroupedTaskGroup",
    "WorkerTask",
    "active_threads",
    "call_after_fork",
    "cancel_again",
    "close_if_unstarted",
    "guard",
    "has_waiters",
    "open_streams",
    "run_sync_joined",
    "source_of",
    "statistics",
    "stream_from_thread",
    "stream_iterable",
    "track_active_thread",
    "validate_buffer_size",
    "validate_limiter",
]
