"""What an application can see of its streams: `statistics`, and the log."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import ref

from .._reporting import SafeLogger
from .home import call_after_fork
from .join import active_threads
from .state import Phase, StreamState, dropped

__all__ = ["Statistics", "on_end", "on_open", "on_start", "open_streams", "statistics"]

logger = SafeLogger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Numbers over all streams of this process, in all event loops."""

    waiting: int  #: streams that wait for their turn
    running: int  #: streams whose producer or ``generate()`` runs
    threads: int  #: worker threads that run one of those, or encode a prompt
    computed_tokens: int  #: tokens that models have made since the start
    delivered_tokens: int  #: tokens that consumers have received since the start


class _OpenStream:
    """A stream that is counted, without keeping it alive."""

    def __init__(self, name: str, state: StreamState[Any]) -> None:
        self.name = name
        self.state = ref(state)
        self.progress = 0, 0  # when it was last looked at


_lock = threading.Lock()
_numbers = count(1)
_open: dict[int, _OpenStream] = {}  # by number
_computed = _delivered = 0  # tokens of the streams that have ended


def _forget_parent() -> None:
    """Start empty in a forked child: no thread of the parent goes on there, not even to unlock."""
    global _lock
    _lock = threading.Lock()
    _open.clear()
    active_threads.clear()


call_after_fork(_forget_parent)


def on_open(name: str, state: StreamState[Any]) -> None:
    """Name and count a stream whose block is entered."""
    state.name, state.number = name, next(_numbers)
    state.totals_recorded = False
    with _lock:
        _count_dropped()
        _open[state.number] = _OpenStream(name, state)
    logger.debug("%s waits for its turn", state.label)


def on_start(state: StreamState[Any]) -> None:
    """Log that a stream's turn has come."""
    logger.debug("%s runs", state.label)


def on_end(state: StreamState[Any]) -> None:
    """Count the tokens of a stream whose worker has exited and whose block is being left."""
    with _lock:
        _count(state.number, state.progress())
    state.totals_recorded = True
    if logger.is_enabled_for(logging.DEBUG):
        logger.debug("%s ended: %s", state.label, state.summary())


def _count(number: int, progress: tuple[int, int]) -> None:
    """Add the tokens of a stream that has ended. The lock is held."""
    global _computed, _delivered
    if _open.pop(number, None) is not None:
        _computed += progress[0]
        _delivered += progress[1]


def _count_dropped() -> None:
    while dropped:
        _count(*dropped.popleft())


def statistics() -> Statistics:
    """Numbers over all streams of this process, from any thread.

    Streams of `AsyncTextIteratorStreamer` are not counted: it owns no thread. If *running* and
    *threads* do not fall to 0 when no task waits for text any more, a stream was left open.
    """
    phases = []
    with _lock:
        _count_dropped()
        for stream in _open.values():
            if (state := stream.state()) is not None:  # else it is being collected right now
                stream.progress = state.progress()
                phases.append(state.phase)
        progress = [stream.progress for stream in _open.values()]
        computed, delivered = _computed, _delivered
    return Statistics(
        waiting=phases.count(Phase.QUEUED),
        running=phases.count(Phase.RUNNING),
        threads=len(active_threads),
        computed_tokens=computed + sum(each for each, _ in progress),
        delivered_tokens=delivered + sum(each for _, each in progress),
    )


def open_streams() -> list[tuple[str, StreamState[Any]]]:
    """The streams whose worker has not exited, each with its name. For tests."""
    with _lock:
        found = [(stream.name, stream.state()) for stream in _open.values()]
    return [(name, state) for name, state in found if state is not None and not state.has_exited]
