"""The generate() of transformers behind the bridge."""

from .api import SupportsGenerate, stream_batch, stream_text
from .call import GenerationCall
from .compare_logits import logits_distance, logits_tolerance
from .detokenizer import continues_prompt, eos_ids
from .drop_in import AsyncTextIteratorStreamer
from .generate_kwargs import check_generate_kwargs, effective_setting, new_token_limit
from .limiters import model_limiter
from .media import has_media, media_kinds
from .missing_processors import note_missing_processor
from .model import check_model, is_encoder_decoder, main_input_name, max_context_length, uses_torch
from .options import Options, Tools, WorkerContext
from .prompts import Prompt, TokenIds, as_prompts, tokenizer_of, validate_prompt
from .request import GenerationRequest
from .reuse_cache import EngineCaches, ReuseCache, validate_reuse_cache
from .score_mask import mask_scores
from .untrusted import UntrustedMessages

__all__ = [
    "AsyncTextIteratorStreamer",
    "EngineCaches",
    "GenerationCall",
    "GenerationRequest",
    "Options",
    "Prompt",
    "ReuseCache",
    "SupportsGenerate",
    "TokenIds",
    "Tools",
    "UntrustedMessages",
    "WorkerContext",
    "as_prompts",
    "check_generate_kwargs",
    "check_model",
    "continues_prompt",
    "effective_setting",
    "eos_ids",
    "has_media",
    "is_encoder_decoder",
    "logits_distance",
    "logits_tolerance",
    "main_input_name",
    "mask_scores",
    "max_context_length",
    "media_kinds",
    "model_limiter",
    "new_token_limit",
    "note_missing_processor",
    "stream_batch",
    "stream_text",
    "tokenizer_of",
    "uses_torch",
    "validate_prompt",
    "validate_reuse_cache",
]
