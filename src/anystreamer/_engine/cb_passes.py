"""One forward pass of a model at a time, where a manager and ``generate()`` share the model.

In a pass of the manager transformers writes ``is_causal`` into the model's config, and takes it out
after the pass. A pass of another thread that overlaps with it reads the wrong value; and where the
two end in the wrong order, the value stays, and all later answers of the model are wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["one_pass_at_a_time"]


@contextmanager
def one_pass_at_a_time(model: Any) -> Iterator[None]:
    """Let the threads that call *model* within the block take turns, a pass each."""
    lock = _PassLock()
    handles = [
        model.register_forward_pre_hook(lock.enter, prepend=True),
        model.register_forward_hook(lock.leave, always_call=True),
    ]
    try:
        yield
    finally:
        lock.close()
        for handle in handles:
            handle.remove()


class _PassLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread
        self._is_open = True

    def enter(self, *_: Any) -> None:
        """A pass begins."""
        if self._holder == threading.get_ident():
            return  # it calls itself
        self._lock.acquire()
        if self._is_open:
            self._holder = threading.get_ident()
        else:
            self._lock.release()

    def leave(self, *_: Any) -> None:
        """A pass has ended, or another hook failed before this lock was entered."""
        if self._holder == threading.get_ident():
            self._holder = None
            self._lock.release()

    def close(self) -> None:
        """Lock nothing more. Waits for the pass that is under way: its `leave` is still called."""
        with self._lock:
            self._is_open = False
