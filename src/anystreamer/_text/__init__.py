"""From token ids to text. Pure: no async, no I/O, nothing from the rest of this package."""

from .base import SupportsDecode, TextDecoder
from .continuation import ContinuationDecoder
from .decoder import text_decoder
from .response_parser import Delta, ResponseParser, response_template_of, validate_template
from .stop_strings import StopStrings, validate_stop_strings

__all__ = [
    "ContinuationDecoder",
    "Delta",
    "ResponseParser",
    "StopStrings",
    "SupportsDecode",
    "TextDecoder",
    "response_template_of",
    "text_decoder",
    "validate_stop_strings",
    "validate_template",
]
