"""One forward pass of a model at a time, where a manager and ``generate()`` share the model.

In a pass of the manager transformers writes ``is_causal`` into the model's config, and takes it out
after the pass. A pass of another thread that overlaps with it reads the wrong value; and where the
two end in the wrong order, the value stays, and all later answers of the model are wrong. The
manager can need another attention as well, which ``generate()`` is not to use.

Those that wait for a pass get it in the order in which they came. So a request of the manager and
one of ``generate()`` get their tokens at the same pace: the passes of two threads that never stop
alternate, and a pass of the manager makes one token for each of its requests. Where ``generate()``
needs the model before a pass too, to make its masks, the turn begins there and ends with the pass.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from .cb_manager import ATTENTION, Attention, use_attention
from .turns import Turns

__all__ = ["one_pass_at_a_time", "turns_last_until_passes_end"]

_lock = threading.Lock()
_users: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # of a model whose passes take turns
_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()


class _Call(threading.local):
    """The call of ``generate()`` that the current thread makes in `turns_last_until_passes_end`."""

    is_running = False
    kept: Turns | None = None  #: entered once more, until the pass has ended

    def keep(self, turns: Turns) -> None:
        if self.is_running:
            turns.__enter__()
            self.kept = turns

    def give_up(self) -> None:
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.__exit__()


_call = _Call()


@contextmanager
def turns_last_until_passes_end() -> Iterator[None]:
    """Within the block, `generate()` makes the masks of a pass and the pass itself in one turn.

    Else each of the two needs a turn, and a manager can have two for each pass of `generate()`.
    This is for the thread of the block. Its end gives up a turn whose pass was not made.
    """
    _call.is_running = True
    try:
        yield
    finally:
        _call.is_running = False
        _call.give_up()


@contextmanager
def one_pass_at_a_time(
    model: Any, configs: Mapping[str, Any], attention: Attention
) -> Iterator[None]:
    """Let the threads that call *model* within the block take turns, a pass each.

    In the passes of a manager, the model's *configs* name this *attention*. All others use
    what the model has.
    """
    with _lock:
        if model not in _users:
            _lock_passes(model, configs, attention)
        _users[model] = _users.get(model, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[model] -= 1
            if not _users[model]:
                del _users[model]
                _unlock_passes(model)


def _lock_passes(model: Any, configs: Mapping[str, Any], attention: Attention) -> None:
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    # Not by torch's hooks: after a BaseException none is called, and the lock would stay locked.
    turns, forward = _turns.setdefault(model, Turns()), model.forward

    @functools.wraps(forward)
    def locked(*args: Any, **kwargs: Any) -> Any:
        is_managers = isinstance(kwargs.get("cache"), PagedAttentionCache)
        try:
            with turns, use_attention(configs, attention) if is_managers else nullcontext():
                return forward(*args, **kwargs)
        finally:
            _call.give_up()

    model.forward = locked
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is None or all(getattr(configs[n], ATTENTION) == v for n, v in attention.items()):
        return

    # `generate()` makes the masks of a pass before it, by the attention that the config names.
    @functools.wraps(prepare)
    def prepare_locked(*args: Any, **kwargs: Any) -> Any:
        _call.give_up()  # of a pass that was not made
        with turns:
            prepared = prepare(*args, **kwargs)
            _call.keep(turns)
        return prepared

    prepare_locked.takes_turns = True  # type: ignore[attr-defined]
    model.prepare_inputs_for_generation = prepare_locked


def _unlock_passes(model: Any) -> None:
    if hasattr(vars(model).get("prepare_inputs_for_generation"), "takes_turns"):
        _unwrap(model, "prepare_inputs_for_generation")
    _unwrap(model, "forward")


def _unwrap(model: Any, name: str) -> None:
    wrapped = getattr(model, name).__wrapped__
    delattr(model, name)
    if getattr(model, name) != wrapped:  # it had one of its own before, as accelerate gives it
        setattr(model, name, wrapped)
