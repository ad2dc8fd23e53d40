"""What an application can see of its streams: `statistics`, and the log. Off the tokens' way."""

from __future__ import annotations

import logging
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

    waiting: int  #: streams whose turn has not come
    running: int  #: streams whose producer or ``generate()`` runs
    threads: int  #: worker threads inside of one, or encoding a prompt
    computed_tokens: int  #: made by models since the start
    delivered_tokens: int  #: received by consumers since the start


_lock = threading.Lock()
_numbers = count(1)
_open: WeakSet[StreamState[Any]] = WeakSet()
_computed = _delivered = 0  # of those that have ended


def on_open(name: str, state: StreamState[Any]) -> None:
    """A block has been entered."""
    state.number = next(_numbers)
    with _lock:
        _open.add(state)
    logger.debug("%s #%d waits for its turn", name, state.number)


def on_start(name: str, state: StreamState[Any]) -> None:
    """Its turn has come."""
    logger.debug("%s #%d runs", name, state.number)


def on_end(name: str, state: StreamState[Any]) -> None:
    """The block is being left, and the worker has left its producer."""
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

    `AsyncTextIteratorStreamer` is not among them: it owns no thread. Where *running* and *threads*
    do not fall to 0 when nobody waits for text any more, something holds a stream open.
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
