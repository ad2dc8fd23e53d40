"""One generation at a time on a model: the limiter of each model, in each event loop."""

from __future__ import annotations

from typing import Any

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from .._weak_cache import WeakCache

__all__ = ["model_limiter"]


# Threads that share a device, or the threads of a CPU pool, are slower together than one by one.
_turns: RunVar[WeakCache[CapacityLimiter]] = RunVar("anystreamer_turns")


def model_limiter(model: Any) -> CapacityLimiter:
    """The limiter for generations of a model in this event loop."""
    while True:  # the same weights behind torch.compile() or an adapter are the same model
        if (inner := getattr(model, "_orig_mod", None)) is not None:
            model = inner
        elif callable(inner := getattr(model, "get_base_model", None)):
            model = inner()
        else:
            break
    try:
        limiters = _turns.get()
    except LookupError:
        limiters = WeakCache()
        _turns.set(limiters)
    return limiters.get(model, lambda: CapacityLimiter(1))
