"""A blocking producer in a worker thread becomes an async stream. Needs anyio alone."""

from .api import stream_from_thread, stream_iterable
from .callables import check_result, close_unstarted, name_of, unblocking_kind, validate_callback
from .context import SingleErrorContext, StreamContext, ThreadContext, UngroupedTaskGroup
from .delivery import QUEUE_POLL, Crossing, LoopDelivery, guard
from .detached import DetachedContext, DetachedTasks
from .emit import Emit, Stopping
from .ending import Ending
from .held_turns import check_limiter, check_turn, holding
from .home import call_after_fork
from .interrupts import uninterrupted
from .join import (
    JOIN_POLL,
    SafeEvent,
    TakenOnce,
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
from .thread_call import IfInterrupted, LoopGone
from .thread_condition import ThreadCondition
from .validation import (
    is_whole,
    validate_buffer_size,
    validate_limiter,
    validate_max_items,
    validate_name,
    validate_seconds,
)
from .worker_task import ThreadTask, WorkerTask, close_if_unstarted, has_waiters, run_named

__all__ = [
    "JOIN_POLL",
    "QUEUE_POLL",
    "Crossing",
    "DetachedContext",
    "DetachedTasks",
    "Emit",
    "Ending",
    "IfInterrupted",
    "LoopDelivery",
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
    "TakenOnce",
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
    "check_limiter",
    "check_result",
    "check_turn",
    "close_if_unstarted",
    "close_unstarted",
    "guard",
    "has_waiters",
    "holding",
    "is_whole",
    "name_of",
    "open_streams",
    "run_named",
    "run_sync_joined",
    "source_of",
    "statistics",
    "stream_from_thread",
    "stream_iterable",
    "track_active_thread",
    "unblocking_kind",
    "uninterrupted",
    "validate_buffer_size",
    "validate_callback",
    "validate_limiter",
    "validate_max_items",
    "validate_name",
    "validate_seconds",
]
