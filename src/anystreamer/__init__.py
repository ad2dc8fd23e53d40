"""Cancellation-safe token streams from transformers' ``generate()``: the public names."""

from anystreamer._bridge import (
    Emit,
    Ending,
    Statistics,
    Stopping,
    ThreadStream,
    statistics,
    stream_from_thread,
    stream_iterable,
)
from anystreamer._drop_in import AsyncTextIteratorStreamer
from anystreamer._engine import Engine, EngineStatistics, open_engine
from anystreamer._errors import (
    EngineBusy,
    EngineClosed,
    EngineDied,
    GenerationStopped,
    GenerationTimeout,
)
from anystreamer._generation import SupportsGenerate, stream_batch, stream_text
from anystreamer._kept_caches import ReuseCache
from anystreamer._loading import load_model
from anystreamer._prompts import TokenIds, UntrustedMessages
from anystreamer._streams import (
    BatchStream,
    FinishReason,
    TextChunk,
    TextStream,
    Timeouts,
    Timing,
    Usage,
)
from anystreamer._text import Choice, Grammar, Regex, SupportsDecode, text_decoder
from anystreamer._workers import Histogram, Worker, WorkerStatistics, open_worker

__all__ = [
    "AsyncTextIteratorStreamer",
    "BatchStream",
    "Choice",
    "Emit",
    "Ending",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineDied",
    "EngineStatistics",
    "FinishReason",
    "GenerationStopped",
    "GenerationTimeout",
    "Grammar",
    "Histogram",
    "Regex",
    "ReuseCache",
    "Statistics",
    "Stopping",
    "SupportsDecode",
    "SupportsGenerate",
    "TextChunk",
    "TextStream",
    "ThreadStream",
    "Timeouts",
    "Timing",
    "TokenIds",
    "UntrustedMessages",
    "Usage",
    "Worker",
    "WorkerStatistics",
    "load_model",
    "open_engine",
    "open_worker",
    "statistics",
    "stream_batch",
    "stream_from_thread",
    "stream_iterable",
    "stream_text",
    "text_decoder",
]
