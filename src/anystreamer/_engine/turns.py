"""`Turns`: a lock that threads get in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Turns"]


class Turns:
    """A reentrant lock without favourites: the thread that has waited longest gets it.

    Python's own locks go to any thread, often to the one that has just released it. A loop that
    makes one forward pass after the other would then keep all others waiting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for moments, around what follows
        self._holder: int | None = None  # the ident of a thread
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._holder in (None, me):
                self._holder = me
                self._depth += 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(place := (me, turn))
        try:
            turn.acquire()  # until it is handed over
        except BaseException:  # a Ctrl-C in the main thread
            self._leave(place)
            raise

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._hand_over()

    def _leave(self, place: tuple[int, threading.Lock]) -> None:
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
            else:  # it has just been handed over
                self._hand_over()

    def _hand_over(self) -> None:
        self._holder, self._depth = None, 0
        if self._waiting:
            self._holder, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()
