"""`Gate`: holds a producer at a known place until the test lets it pass."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from .._bridge import ThreadCondition

__all__ = ["Gate"]

# A thread that waits at a gate looks this often whether its stream was stopped (seconds).
STOP_POLL = 0.002


class Gate:
    """Holds a scripted model, or a fake engine of yours, until the test lets it pass.

    The producer waits at it in its thread. The test waits for that, and lets it pass, in any event
    loop or any thread. It does not use the clock of an event loop: a test can stop this clock.

    Args:
        timeout: seconds that a thread waits at most. If a test fails between two gates, the end of
            the block waits for its producer, which waits here: this ends both.

    Raises:
        ValueError: *timeout* is negative or NaN.
    """

    def __init__(self, *, timeout: float = 60.0) -> None:
        if not timeout >= 0:
            raise ValueError(f"timeout must be at least 0 seconds, got {timeout!r}")
        self._timeout = timeout
        self._lock = threading.Lock()  # around all that is below
        self._waiting: deque[threading.Event] = deque()  # of each thread that waits here
        self._passes = 0  # for threads that have not come yet
        self._is_open = False
        self._reached = threading.Event()
        self._arrived = ThreadCondition()

    def open(self) -> None:
        """Let all threads pass, now and later. From any thread."""
        with self._lock:
            self._is_open = True
            self._wake(len(self._waiting))

    def let_pass(self, times: int = 1) -> None:
        """Let one thread pass, or a thread this many times; then the gate is closed again.

        Threads that wait pass in the order in which they came. If too few wait, the next ones pass
        without a halt. From any thread.

        Raises:
            ValueError: *times* is below 1.
        """
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times!r}")
        with self._lock:
            count = min(times, len(self._waiting))
            self._passes += times - count
            self._wake(count)
            self._note_departure()

    @property
    def is_reached(self) -> bool:
        """Whether a thread waits at the gate, or has come to it and it was opened."""
        return self._reached.is_set()

    async def reached(self) -> None:
        """Wait until a thread waits at the gate, or has come to it and it was opened.

        It has no limit of its own: use `anyio.fail_after`.
        """
        await self._arrived.wait_for(self._reached.is_set)

    def wait_until_reached(self, timeout: float = 60.0) -> None:
        """The same without an event loop: block for this many seconds at most.

        Raises:
            TimeoutError: no thread has come.
        """
        if not self._reached.wait(min(timeout, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"no thread has reached the gate within {timeout} s")

    def wait(self, should_stop: Callable[[], bool] | None = None) -> bool:
        """Wait until the test lets this thread pass. The producer calls it, in its thread.

        Args:
            should_stop: the producer's, if a stop is to end the wait. Without it the gate holds the
                producer after a stop too, as in the middle of a step that cannot be interrupted.

        Returns:
            True if the test let it pass, False if *should_stop* ended the wait.

        Raises:
            TimeoutError: the test has not let it pass within the gate's *timeout*.
        """
        passed = threading.Event()
        with self._lock:
            if self._passes and not self._is_open:
                self._passes -= 1
                return True
            if self._is_open:
                passed.set()
            else:
                self._waiting.append(passed)
            self._reached.set()
        self._arrived.notify()  # without the lock: the loop that it waits for may want to open us
        try:
            return self._wait_for(passed, should_stop)
        finally:
            with self._lock, suppress(ValueError):
                self._waiting.remove(passed)  # it goes by itself
                self._note_departure()

    def _wait_for(self, passed: threading.Event, should_stop: Callable[[], bool] | None) -> bool:
        deadline = monotonic() + self._timeout
        while (seconds := deadline - monotonic()) > 0:
            if should_stop is not None:
                seconds = min(seconds, STOP_POLL)
            if passed.wait(min(seconds, threading.TIMEOUT_MAX)):
                return True
            if should_stop is not None and should_stop():
                return passed.is_set()
        if passed.is_set():
            return True
        raise TimeoutError(f"the test has not opened the gate within {self._timeout} s")

    def _wake(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft().set()

    def _note_departure(self) -> None:
        if not (self._waiting or self._is_open):
            self._reached.clear()
