"""`Ending`: how the producer of a stream ended."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Ending"]


class Ending(StrEnum):
    """How the producer of a stream ended.

    If several are true, the first of them counts, in this order: failed, ended, stopped, cancelled.
    """

    ENDED = "ended"  #: the producer returned by itself, and all its items were received
    STOPPED = "stopped"  #: `ThreadStream.stop` was called
    CANCELLED = "cancelled"  #: by a scope, ``aclose()``, or leaving the block
    FAILED = "failed"  #: the producer raised
