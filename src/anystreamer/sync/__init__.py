"""The same streams for callers with no event loop: Flask, Django, Gradio, notebooks, scripts."""

from __future__ import annotations

from typing import Any

from .._engine import open_engine as _open_engine
from .._generation import stream_batch as _stream_batch
from .._generation import stream_text as _stream_text
from .._workers import open_worker as _open_worker
from ._engine import OwnedSyncEngine, SyncEngine
from ._portal import in_portal
from ._producers import stream_from_thread, stream_iterable
from ._signatures import with_signature_of
from ._streams import SyncStream, SyncThreadStream
from ._text_streams import SyncBatchStream, SyncTextStream
from ._worker import OwnedSyncWorker, SyncWorker

__all__ = [
    "OwnedSyncEngine",
    "OwnedSyncWorker",
    "SyncBatchStream",
    "SyncEngine",
    "SyncStream",
    "SyncTextStream",
    "SyncThreadStream",
    "SyncWorker",
    "open_engine",
    "open_worker",
    "stream_batch",
    "stream_from_thread",
    "stream_iterable",
    "stream_text",
]


@with_signature_of(_stream_text)
def stream_text(*args: Any, **kwargs: Any) -> SyncTextStream:
    """As `anystreamer.stream_text`, with the same arguments, for ``with`` and ``for``."""
    return SyncTextStream("stream_text", in_portal("stream_text", _stream_text(*args, **kwargs)))


@with_signature_of(_stream_batch)
def stream_batch(*args: Any, **kwargs: Any) -> SyncBatchStream:
    """As `anystreamer.stream_batch`, with the same arguments, for ``with`` and ``for``."""
    return SyncBatchStream(
        "stream_batch", in_portal("stream_batch", _stream_batch(*args, **kwargs))
    )


@with_signature_of(_open_engine)
def open_engine(*args: Any, **kwargs: Any) -> OwnedSyncEngine:
    """As `anystreamer.open_engine`, with the same arguments, for ``with`` and many threads."""
    return OwnedSyncEngine(_open_engine(*args, **kwargs))


@with_signature_of(_open_worker)
def open_worker(*args: Any, **kwargs: Any) -> OwnedSyncWorker:
    """As `anystreamer.open_worker`, with the same arguments, for ``with`` and many threads."""
    return OwnedSyncWorker(_open_worker(*args, **kwargs))
