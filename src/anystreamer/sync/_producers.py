"""`stream_from_thread` and `stream_iterable` for callers with no event loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from anyio import CapacityLimiter

from .._bridge import Emit, Stopping
from .._bridge import stream_from_thread as _stream_from_thread
from .._bridge import stream_iterable as _stream_iterable
from ._portal import in_portal
from ._streams import SyncThreadStream

__all__ = ["stream_from_thread", "stream_iterable"]

T = TypeVar("T")


@overload  # type checkers cannot infer T from the next one for such a function
def stream_from_thread(
    produce: Callable[[Callable[[T], None], Callable[[], bool]], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
) -> SyncThreadStream[T]: ...


@overload
def stream_from_thread(
    produce: Callable[[Emit[T], Stopping], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
) -> SyncThreadStream[T]: ...


def stream_from_thread(
    produce: Callable[[Any, Any], object],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
) -> SyncThreadStream[Any]:
    """As `anystreamer.stream_from_thread`, with the same arguments, for ``with`` and ``for``.

    A *limiter* is for streams of this module alone: an event loop cannot share it.
    """
    context = _stream_from_thread(
        produce, max_buffer_size=max_buffer_size, limiter=limiter, on_stop=on_stop, name=name
    )
    return SyncThreadStream("stream_from_thread", in_portal("stream_from_thread", context))


def stream_iterable(
    make_iterable: Callable[[], Iterable[T]],
    *,
    max_buffer_size: float = math.inf,
    limiter: CapacityLimiter | None = None,
    on_stop: Callable[[], object] | None = None,
    name: str | None = None,
    close: bool = True,
) -> SyncThreadStream[T]:
    """As `anystreamer.stream_iterable`, with the same arguments, for ``with`` and ``for``.

    A *limiter* is for streams of this module alone: an event loop cannot share it.
    """
    context = _stream_iterable(
        make_iterable,
        max_buffer_size=max_buffer_size,
        limiter=limiter,
        on_stop=on_stop,
        name=name,
        close=close,
    )
    return SyncThreadStream("stream_iterable", in_portal("stream_iterable", context))
