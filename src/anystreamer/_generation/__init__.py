"""The generate() of transformers behind the bridge."""

from .api import SupportsGenerate, stream_batch, stream_text
from .call import GenerationCall
from .detokenizer import eos_ids
from .drop_in import AsyncTextIteratorStreamer
from .limiters import model_limiter
from .options import (
    check_generate_kwargs,
    check_model,
    max_context_length,
    new_token_limit,
    uses_torch,
)
from .prompts import Prompt, as_prompts, tokenizer_of, validate_prompt
from .request import GenerationRequest, WorkerContext

__all__ = [
    "AsyncTextIteratorStreamer",
    "GenerationCall",
    "GenerationRequest",
    "Prompt",
    "SupportsGenerate",
    "WorkerContext",
    "as_prompts",
    "check_generate_kwargs",
    "check_model",
    "eos_ids",
    "max_context_length",
    "model_limiter",
    "new_token_limit",
    "stream_batch",
    "stream_text",
    "tokenizer_of",
    "uses_torch",
    "validate_prompt",
]
