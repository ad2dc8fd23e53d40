"""A blocking producer in a worker thread becomes an async stream. Needs anyio alone."""

from .api import stream_from_thread, stream_iterable
from .callables import close_unstarted, name_of, unblocking_kind, validate_callback
from .context import SingleErrorContext, StreamContext, ThreadContext, UngroupedTaskGroup
from .delivery import guard
from .detached import DetachedContext, DetachedTasks, LoopGone
from .emit import Emit, Stopping
from .ending import Ending
from .home import call_after_fork
from .join import (
    JOIN_POLL,
    SafeEvent,
    ThreadEvent,
    active_threads,
    run_sync_joined,
    track_active_thread,
)
from .observing import Statistics, open_streams, statistics
from .producer import Producer
from .sink import Sink
from .state import Phase, StreamState
from .stream import ThreadStream
from .thread_condition import ThreadCondition
from .validation import validate_buffer_size, validate_limiter
from .worker_task import ThreadTask, WorkerTask, close_if_unstarted, has_waiters

__all__ = [
    "JOIN_POLL",
    "DetachedContext",
    "DetachedTasks",
    "Emit",
    "Ending",
    "LoopGone",
    "Phase",
    "Producer",
    "SafeEvent",
    "SingleErrorContext",
    "Sink",
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
    "close_if_unstarted",
    "close_unstarted",
    "guard",
    "has_waiters",
    "name_of",
    "open_streams",
    "run_sync_joined",
    "statistics",
    "stream_from_thread",
    "stream_iterable",
    "track_active_thread",
    "unblocking_kind",
    "validate_buffer_size",
    "validate_callback",
    "validate_limiter",
]
