"""Who owns threads for an application: the base of engines, and workers for any producer."""

from .context import OwnerContext
from .metrics import Counts, Histogram, TurnMetrics
from .owner import OwnedTask, Owner
from .queue import AdmissionQueue, Lane
from .threads import WorkItem, WorkThreads
from .validation import validate_count
from .worker import Worker, WorkerStatistics, open_worker

__all__ = [
    "AdmissionQueue",
    "Counts",
    "Histogram",
    "Lane",
    "OwnedTask",
    "Owner",
    "OwnerContext",
    "TurnMetrics",
    "WorkItem",
    "WorkThreads",
    "Worker",
    "WorkerStatistics",
    "open_worker",
    "validate_count",
]
