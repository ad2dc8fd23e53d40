"""A blocking producer in a worker thread becomes an async stream. Needs anyio alone."""

from .api import stream_from_thread, stream_iterable
from .context import SingleErrorContext, StreamContext, ThreadContext, UngroupedTaskGroup
from .join import JOIN_POLL, SafeEvent, run_sync_joined, track_active_thread
from .observing import Statistics, statistics
from .producer import Producer, wrap_control_flow_exception
from .stream import QUEUE_POLL, ThreadStream
from .validation import validate_buffer_size, validate_limiter
from .worker_task import Host, Job, ThreadJob, has_waiters

__all__ = [
    "JOIN_POLL",
    "QUEUE_POLL",
    "Host",
    "Job",
    "Producer",
    "SafeEvent",
    "SingleErrorContext",
    "Statistics",
    "StreamContext",
    "ThreadContext",
    "ThreadJob",
    "ThreadStream",
    "UngroupedTaskGroup",
    "has_waiters",
    "run_sync_joined",
    "statistics",
    "stream_from_thread",
    "stream_iterable",
    "track_active_thread",
    "validate_buffer_size",
    "validate_limiter",
    "wrap_control_flow_exception",
]
