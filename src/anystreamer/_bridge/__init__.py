"""A blocking producer in a worker thread becomes an async stream. Needs anyio alone."""

from .api import stream_from_thread, stream_iterable
from .context import Block, StreamContext, TaskBlock, ThreadContext
from .join import JOIN_POLL, Flag, counted, run_joined
from .observing import Statistics, statistics
from .producer import Producer, unmistakable
from .stream import QUEUE_POLL, ThreadStream
from .validation import checked_buffer_size, checked_limiter
from .worker_task import Host, Job, ThreadJob, waits_for

__all__ = [
    "JOIN_POLL",
    "QUEUE_POLL",
    "Block",
    "Flag",
    "Host",
    "Job",
    "Producer",
    "Statistics",
    "StreamContext",
    "TaskBlock",
    "ThreadContext",
    "ThreadJob",
    "ThreadStream",
    "checked_buffer_size",
    "checked_limiter",
    "counted",
    "run_joined",
    "statistics",
    "stream_from_thread",
    "stream_iterable",
    "unmistakable",
    "waits_for",
]
