"""Streams of generated text: what a consumer holds, and the state behind it."""

from .clock import TokenClock, TokenMetrics
from .state import GenerationState
from .text_stream import BatchStream, GenerationStream, TextStream
from .timeouts import PHASES, Deadlines, Timeouts, queue_deadline, validate_timeouts
from .tracing import GenerationSpan, answering
from .types import FinishReason, Logprob, Row, TextChunk, Timing, Usage

__all__ = [
    "PHASES",
    "BatchStream",
    "Deadlines",
    "FinishReason",
    "GenerationSpan",
    "GenerationState",
    "GenerationStream",
    "Logprob",
    "Row",
    "TextChunk",
    "TextStream",
    "Timeouts",
    "Timing",
    "TokenClock",
    "TokenMetrics",
    "Usage",
    "answering",
    "queue_deadline",
    "validate_timeouts",
]
