"""The same streams for callers with no event loop: Flask, Django, Gradio, notebooks, scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .._bridge import DetachedContext, StreamContext
from .._engine import open_engine as _open_engine
from .._generation import stream_batch as _stream_batch
from .._generation import stream_text as _stream_text
from .._streams import GenerationStream
from ._engine import OwnedSyncEngine, SyncEngine
from ._portal import Tasks, portal
from ._signatures import with_signature_of
from ._streams import SyncBatchStream, SyncStream, SyncTextStream

__all__ = [
    "OwnedSyncEngine",
    "SyncBatchStream",
    "SyncEngine",
    "SyncStream",
    "SyncTextStream",
    "open_engine",
    "stream_batch",
    "stream_text",
]

StreamT = TypeVar("StreamT", bound=GenerationStream)


@with_signature_of(_stream_text)
def stream_text(*args: Any, **kwargs: Any) -> SyncTextStream:
    """As `anystreamer.stream_text`, with the same arguments, for ``with`` and ``for``."""
    return SyncTextStream("stream_text", _in_portal("stream_text", _stream_text(*args, **kwargs)))


@with_signature_of(_stream_batch)
def stream_batch(*args: Any, **kwargs: Any) -> SyncBatchStream:
    """As `anystreamer.stream_batch`, with the same arguments, for ``with`` and ``for``."""
    return SyncBatchStream(
        "stream_batch", _in_portal("stream_batch", _stream_batch(*args, **kwargs))
    )


def _in_portal(
    name: str, context: StreamContext[StreamT]
) -> Callable[[], tuple[Tasks, StreamContext[StreamT]]]:
    def new_context() -> tuple[Tasks, StreamContext[StreamT]]:
        tasks = portal.tasks()
        return tasks, DetachedContext(name, context.new_task, tasks)

    return new_context


@with_signature_of(_open_engine)
def open_engine(*args: Any, **kwargs: Any) -> OwnedSyncEngine:
    """As `anystreamer.open_engine`, with the same arguments, for ``with`` and many threads."""
    return OwnedSyncEngine(_open_engine(*args, **kwargs))
