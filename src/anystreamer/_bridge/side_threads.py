"""`call_aside`: calls a function in another thread, and does not wait for it.

An exception of a signal handler strikes the main thread alone, and at any line. So what must not be
struck is called in another thread. `threading.Thread.start` waits, which can be struck as well: the
thread would then never run. These threads are daemons.
"""

from __future__ import annotations

from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from .home import call_after_fork

__all__ = ["call_aside"]

Calls = SimpleQueue[Callable[[], object]]

_idle: deque[Calls] = deque()  # one for each thread that waits for a call
call_after_fork(_idle.clear)


def call_aside(func: Callable[[], object]) -> None:
    """Call *func* in a thread that has no other call. It must not raise."""
    try:
        calls = _idle.pop()
    except IndexError:
        start_new_thread(_serve, (calls := Calls(),))
    calls.put(func)


def _serve(calls: Calls) -> None:
    while True:
        calls.get()()
        _idle.append(calls)
