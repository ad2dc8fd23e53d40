"""From prompts, chats, pictures and sound to the inputs of a model."""

from .media import has_media, media_kinds, open_picture
from .media_fetch import fetch_media
from .missing_processors import note_missing_processor
from .processors import check_media, prompts_for_processor
from .prompt_checks import check_context_length, check_vocabulary
from .prompts import (
    Prompt,
    TokenIds,
    as_prompts,
    encode,
    padded,
    prompt_rows,
    tokenizer_of,
    validate_prompt,
    validate_prompts,
)
from .untrusted import UntrustedMessages

__all__ = [
    "Prompt",
    "TokenIds",
    "UntrustedMessages",
    "as_prompts",
    "check_context_length",
    "check_media",
    "check_vocabulary",
    "encode",
    "fetch_media",
    "has_media",
    "media_kinds",
    "note_missing_processor",
    "open_picture",
    "padded",
    "prompt_rows",
    "prompts_for_processor",
    "tokenizer_of",
    "validate_prompt",
    "validate_prompts",
]
