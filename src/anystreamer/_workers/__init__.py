"""Owners of threads for an application: the base of engines, and workers for any producer."""

from .context import OwnerContext
from .metrics import Counts, Histogram, TurnMetrics
from .owner import OwnedTask, Owner
from .queue import AdmissionQueue, Lane
from .thread_owner import ThreadOwner
from .threads import WorkItem, WorkThreads
from .validation import validate_count
from .worker import (
    Worker,
    WorkerContext,
    WorkerStatistics,
    call_source,
    open_worker,
    owner_of,
)

__all__ = [
    "AdmissionQueue",
    "Counts",
    "Histogram",
    "Lane",
    "OwnedTask",
    "Owner",
    "OwnerContext",
    "ThreadOwner",
    "TurnMetrics",
    "WorkItem",
    "WorkThreads",
    "Worker",
    "WorkerContext",
    "WorkerStatistics",
    "call_source",
    "open_worker",
    "owner_of",
    "validate_count",
]
