"""`no_worker_left`: fails where a stream's worker goes on after a test."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

from .._bridge import Phase, StreamState, active_threads, open_streams

__all__ = ["no_worker_left"]

# How often to check whether a worker has ended meanwhile (seconds).
POLL = 0.001


@contextmanager
def no_worker_left(*, timeout: float = 2.0) -> Iterator[None]:
    """Fail if a stream that was opened inside has a worker that still runs at the end.

    Use it as ``with no_worker_left():`` around a test, or as a fixture of
    `anystreamer.pytest_plugin`. A worker still runs if the block of its stream is still open, or if
    a generator that holds the block was neither finished nor closed. It is then stopped, so that
    other tests and the end of the program do not wait for it.

    Args:
        timeout: seconds for a worker that is about to end by itself, for example of a stream that
            was forgotten. If none is left, nothing waits.

    Raises:
        AssertionError: a worker is left. The message has the name of its stream, and where its
            thread is.
    """
    streams_before = {state.number for _, state in open_streams()}
    threads_before = set(active_threads)

    def left() -> tuple[list[tuple[str, StreamState[Any]]], set[int]]:
        streams = [each for each in open_streams() if each[1].number not in streams_before]
        return streams, {*active_threads} - threads_before

    try:
        yield
    except BaseException:
        for _, state in left()[0]:
            state.abandon()
        raise
    if _comes_true(lambda: not any(left()), timeout):
        return
    streams, threads = left()
    message = _message(streams, threads)
    for _, state in streams:
        state.abandon()
    raise AssertionError(message)


def _comes_true(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = monotonic() + timeout
    while not (is_true := condition()) and monotonic() < deadline:
        sleep(POLL)
    return is_true


def _message(streams: list[tuple[str, StreamState[Any]]], threads: set[int]) -> str:
    lines = [
        f"{name} #{state.number} was left "
        + ("waiting for its turn" if state.phase is Phase.QUEUED else "running")
        for name, state in streams
    ]
    frames = sys._current_frames()  # noqa: SLF001  Python's documented way to ask
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident in threads & frames.keys():
        lines.append(f"{names.get(ident, 'a thread')} is in:")
        lines += traceback.format_stack(frames[ident])
    return "\n".join(line.rstrip() for line in lines)
