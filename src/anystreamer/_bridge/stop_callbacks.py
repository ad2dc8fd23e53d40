"""`StopCallbacks`: functions that a producer registers, to be called when its stream is stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import sleep

from .._errors import GenerationStopped, describe
from .._reporting import SafeLogger
from .callables import check_result, name_of

__all__ = ["StopCallbacks"]

logger = SafeLogger()

# How often a producer that has returned checks whether a callback has returned, too (seconds).
END_POLL = 0.001


class StopCallbacks:
    """Calls each function once, after a stop, and before the producer has returned.

    It takes no lock, because a stop can come in a signal handler.
    """

    def __init__(self) -> None:
        self._callbacks: deque[Callable[[], object]] = deque()
        self._calling: set[object] = set()  # has an item for each thread that is in `call`
        self._is_over = False

    def add(self, callback: Callable[[], object]) -> None:
        """Register a function for the next `call`."""
        self._callbacks.append(callback)

    def call(self) -> None:
        """Call what is registered, in this thread. Raises nothing but a KeyboardInterrupt."""
        if not self._callbacks:
            return
        me = object()
        try:
            try:
                self._calling.add(me)  # first: `end` waits for it, or has been called before
                self._call_all()
            finally:
                self._calling.discard(me)
        finally:
            self._calling.discard(me)  # again: on trio a Ctrl-C can strike anywhere

    def _call_all(self) -> None:
        while not self._is_over:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            self._call_one(callback)

    def _call_one(self, callback: Callable[[], object]) -> None:
        try:
            check_result(callback(), "a callback")
        except GenerationStopped:  # from emit(), which has delivered the item or was too late
            pass
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # SystemExit, too: the code that stops it must join it
            logger.warning(
                "the on_stop callback %s failed: %s",
                name_of(callback),
                describe(exc),
                exc_info=exc,
            )

    def end(self) -> None:
        """Call no more: the producer has returned. Waits for a callback that is being called."""
        self._is_over = True
        while self._calling:
            sleep(END_POLL)
        self._callbacks.clear()
