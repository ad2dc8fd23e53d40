"""The generate() of transformers behind the bridge."""

from .api import SupportsGenerate, stream_batch, stream_text
from .call import GenerationCall
from .compare_logits import logits_distance, logits_tolerance
from .detokenizer import continues_prompt, eos_ids
from .generate_kwargs import (
    check_generate_kwargs,
    effective_setting,
    is_assisted,
    new_token_limit,
    stopping_criteria,
)
from .limiters import model_limiter
from .options import Options, Tools, WorkerContext
from .request import GenerationRequest
from .score_mask import mask_scores
from .seed import Seed
from .token_streamer import row_of
from .up_to import UpTo

__all__ = [
    "GenerationCall",
    "GenerationRequest",
    "Options",
    "Seed",
    "SupportsGenerate",
    "Tools",
    "UpTo",
    "WorkerContext",
    "check_generate_kwargs",
    "continues_prompt",
    "effective_setting",
    "eos_ids",
    "is_assisted",
    "logits_distance",
    "logits_tolerance",
    "mask_scores",
    "model_limiter",
    "new_token_limit",
    "row_of",
    "stopping_criteria",
    "stream_batch",
    "stream_text",
]
