"""`Turns`: a lock that threads get in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Turns"]


class _Waiter:
    """A thread in the queue. The first one has the lock."""

    def __init__(self, thread: int) -> None:
        self.thread = thread  # its ident
        self.entered = 1  # times
        self.turn = threading.Lock()  # released when it is the first
        self.turn.acquire()


class Turns:
    """A reentrant lock without favourites: the thread that has waited longest gets it.

    Python's own locks go to any thread, often to the one that has just released it. A loop that
    makes one forward pass after the other would then keep all others waiting.

    A KeyboardInterrupt takes the thread out of the queue, at whatever step of ``__enter__`` it
    strikes: else the lock would be given to a thread that does not wait for it. Only one that
    strikes the very call of ``__exit__`` leaves the lock locked, as with `threading.Condition`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for moments, around what follows
        self._waiters: deque[_Waiter] = deque()

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._lock:
            first = self._waiters[0] if self._waiters else None
        if first is None or first.thread != me:
            self._wait_for_turn(_Waiter(me))
        else:  # nothing can interrupt it after this
            first.entered += 1

    def __exit__(self, *exc_info: object) -> None:
        mine = self._waiters[0]
        mine.entered -= 1
        if not mine.entered:
            try:
                self._leave(mine)
            except BaseException:
                self._leave(mine)
                raise

    def _wait_for_turn(self, waiter: _Waiter) -> None:
        try:
            with self._lock:
                self._waiters.append(waiter)
                self._wake_first()
            waiter.turn.acquire()
        except BaseException:  # a Ctrl-C in the main thread
            self._leave(waiter)
            raise

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._wake_first()

    def _wake_first(self) -> None:
        # Where the first one runs already, this has no effect: no thread acquires it again.
        if self._waiters and self._waiters[0].turn.locked():
            self._waiters[0].turn.release()
