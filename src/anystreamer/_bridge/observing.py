"""What an application can see of its streams: `statistics`, and the log."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakSet

from .join import active_threads
from .state import Phase, StreamState

__all__ = ["Statistics", "on_end", "on_open", "on_start", "statistics"]

logger = logging.getLogger("anystreamer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Numbers over all streams of this process, in whichever event loop."""

    waiting: int  #: streams that wait for their turn
    running: int  #: streams whose producer or ``generate()`` runs
    threads: int  #: worker threads that run one of those, or encode a prompt
    computed_tokens: int  #: tokens that models have made since the start
    delivered_tokens: int  #: tokens that consumers have received since the start


_lock = threading.Lock()
_numbers = count(1)
_open: WeakSet[StreamState[Any]] = WeakSet()
_computed = _delivered = 0  # tokens of the streams that have ended


def _forget_parent() -> None:
    """Begin anew in a forked child: no thread of the parent goes on there, not even to unlock."""
    global _lock, _open
    _lock = threading.Lock()
    _open = WeakSet()
    active_threads.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_parent)


def on_open(name: str, state: StreamState[Any]) -> None:
    """Count a stream whose block is entered."""
    state.number = next(_numbers)
    with _lock:
        _open.add(state)
    logger.debug("%s #%d waits for its turn", name, state.number)


def on_start(name: str, state: StreamState[Any]) -> None:
    """Log that a stream's turn has come."""
    logger.debug("%s #%d runs", name, state.number)


def on_end(name: str, state: StreamState[Any]) -> None:
    """Count the tokens of a stream whose worker has exited and whose block is being left."""
    global _computed, _delivered
    with _lock:
        _open.discard(state)
        computed, delivered = state.progress()
        _computed += computed
        _delivered += delivered
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s #%d ended: %s", name, state.number, state.summary())


def statistics() -> Statistics:
    """Numbers over all streams of this process, from any thread.

    Streams of `AsyncTextIteratorStreamer` are not counted: it owns no thread. If *running* and
    *threads* do not fall to 0 when no task waits for text any more, a stream was left open.
    """
    with _lock:
        states = list(_open)
        progress = [state.progress() for state in states]
        computed, delivered = _computed, _delivered
    phases = [state.phase for state in states]
    return Statistics(
        waiting=phases.count(Phase.QUEUED),
        running=phases.count(Phase.RUNNING),
        threads=len(active_threads),
        computed_tokens=computed + sum(each for each, _ in progress),
        delivered_tokens=delivered + sum(each for _, each in progress),
    )
