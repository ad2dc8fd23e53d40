"""The generate() of transformers behind the bridge."""

from .api import SupportsGenerate, stream_batch, stream_text
from .call import generation
from .detokenizer import eos_ids
from .drop_in import AsyncTextIteratorStreamer
from .limiters import turns_of
from .options import check_generate_kwargs, check_model, context_of, most_new_tokens, uses_torch
from .prompts import Prompt, as_prompts, checked_prompt, tokenizer_of
from .request import Request, WorkerContext

__all__ = [
    "AsyncTextIteratorStreamer",
    "Prompt",
    "Request",
    "SupportsGenerate",
    "WorkerContext",
    "as_prompts",
    "check_generate_kwargs",
    "check_model",
    "checked_prompt",
    "context_of",
    "eos_ids",
    "generation",
    "most_new_tokens",
    "stream_batch",
    "stream_text",
    "tokenizer_of",
    "turns_of",
    "uses_torch",
]
