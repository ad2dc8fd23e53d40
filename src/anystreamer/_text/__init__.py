"""From token ids to text. Pure: no async, no I/O, nothing from the rest of this package."""

from .base import SupportsDecode, TextDecoder, special_ids
from .continuation import ContinuationDecoder
from .decoder import text_decoder
from .form_matcher import FormMatcher, Reasoning, new_matcher
from .response_format import (
    AnswerForm,
    Choice,
    Grammar,
    Regex,
    ResponseFormat,
    validate_response_format,
)
from .response_parser import (
    Delta,
    ResponseParser,
    reasoning_markers,
    response_template_of,
    validate_template,
)
from .stop_strings import StopSet, StopStrings, validate_stop_strings
from .token_bytes import TokenBytes

__all__ = [
    "AnswerForm",
    "Choice",
    "ContinuationDecoder",
    "Delta",
    "FormMatcher",
    "Grammar",
    "Reasoning",
    "Regex",
    "ResponseFormat",
    "ResponseParser",
    "StopSet",
    "StopStrings",
    "SupportsDecode",
    "TextDecoder",
    "TokenBytes",
    "new_matcher",
    "reasoning_markers",
    "response_template_of",
    "special_ids",
    "text_decoder",
    "validate_response_format",
    "validate_stop_strings",
    "validate_template",
]
