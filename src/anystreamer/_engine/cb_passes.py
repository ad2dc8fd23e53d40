"""One forward pass of a model at a time, where a manager and ``generate()`` share the model.

In a pass of the manager transformers writes ``is_causal`` into the model's config, and takes it out
after the pass. A pass of another thread that overlaps with it reads the wrong value; and where the
two end in the wrong order, the value stays, and all later answers of the model are wrong.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["one_pass_at_a_time"]

_lock = threading.Lock()
_users: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # of a model whose passes take turns


@contextmanager
def one_pass_at_a_time(model: Any) -> Iterator[None]:
    """Let the threads that call *model* within the block take turns, a pass each."""
    with _lock:
        if model not in _users:
            _lock_passes(model)
        _users[model] = _users.get(model, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[model] -= 1
            if not _users[model]:
                del _users[model]
                _unlock_passes(model)


def _lock_passes(model: Any) -> None:
    # Not by torch's hooks: after a BaseException none is called, and the lock would stay locked.
    turn, forward = threading.RLock(), model.forward

    @functools.wraps(forward)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with turn:
            return forward(*args, **kwargs)

    model.forward = locked


def _unlock_passes(model: Any) -> None:
    forward = model.forward.__wrapped__
    del model.forward
    if model.forward != forward:  # it had one of its own before, as accelerate gives it
        model.forward = forward
