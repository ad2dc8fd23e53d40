"""From token ids to text. Pure: no async, no I/O, nothing from the rest of this package."""

from .base import SupportsDecode, TextDecoder, special_ids
from .continuation import ContinuationDecoder
from .decoder import text_decoder
from .response_parser import Delta, ResponseParser, response_template_of, validate_template
from .stop_strings import StopSet, StopStrings, validate_stop_strings
from .token_bytes import TokenBytes

__all__ = [
    "ContinuationDecoder",
    "Delta",
    "ResponseParser",
    "StopSet",
    "StopStrings",
    "SupportsDecode",
    "TextDecoder",
    "TokenBytes",
    "response_template_of",
    "special_ids",
    "text_decoder",
    "validate_stop_strings",
    "validate_template",
]
