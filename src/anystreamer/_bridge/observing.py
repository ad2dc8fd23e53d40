"""What an application can see of its streams: `statistics`, and the log. Off the tokens' way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Protocol
from weakref import WeakSet

from .join import active_threads

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


class Observed(Protocol):
    """What is asked of a stream, by any thread, while it is open."""

    _number: int

    def _progress(self) -> tuple[str, int, int]: ...

    def _summary(self) -> str: ...


_lock = threading.Lock()
_numbers = count(1)
_open: WeakSet[Observed] = WeakSet()
_computed = _delivered = 0  # of those that have ended


def on_open(name: str, stream: Observed) -> None:
    """A block has been entered."""
    stream._number = next(_numbers)
    with _lock:
        _open.add(stream)
    logger.debug("%s #%d waits for its turn", name, stream._number)


def on_start(name: str, stream: Observed) -> None:
    """Its turn has come."""
    logger.debug("%s #%d runs", name, stream._number)


def on_end(name: str, stream: Observed) -> None:
    """The block is being left, and the worker has left its producer."""
    global _computed, _delivered
    with _lock:
        _open.discard(stream)
        _, computed, delivered = stream._progress()
        _computed += computed
        _delivered += delivered
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s #%d ended: %s", name, stream._number, stream._summary())


def statistics() -> Statistics:
    """Numbers over all streams of this process, from any thread.

    `AsyncTextIteratorStreamer` is not among them: it owns no thread. Where *running* and *threads*
    do not fall to 0 when nobody waits for text any more, something holds a stream open.
    """
    with _lock:
        progress = [stream._progress() for stream in _open]
        computed, delivered = _computed, _delivered
    return Statistics(
        waiting=_how_many(progress, "waiting"),
        running=_how_many(progress, "running"),
        threads=len(active_threads),
        computed_tokens=computed + sum(each for _, each, _ in progress),
        delivered_tokens=delivered + sum(each for _, _, each in progress),
    )


def _how_many(progress: Iterable[tuple[str, int, int]], state: str) -> int:
    return sum(each == state for each, _, _ in progress)
