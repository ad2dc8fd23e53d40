"""Streams of generated text: what a consumer holds, and the state behind it."""

from .state import GenerationState
from .text_stream import BatchStream, GenerationStream, TextStream
from .timeouts import PHASES, Timeouts, queue_deadline, validate_timeouts
from .tracing import GenerationSpan, answering
from .types import FinishReason, Logprob, Row, TextChunk, Timing, Usage

__all__ = [
    "PHASES",
    "BatchStream",
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
    "Usage",
    "answering",
    "queue_deadline",
    "validate_timeouts",
]
