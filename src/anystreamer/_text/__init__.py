"""From token ids to text. Pure: no async, no I/O.

From the rest of this package, it imports only `_installing` and `_reporting`.
"""

from .argument_schemas import parser_tools
from .base import SupportsDecode, TextDecoder, special_ids
from .call_or_answer import CallOrAnswerForm
from .continuation import ContinuationDecoder
from .decoder import text_decoder
from .form_matcher import Form, FormMatcher, FormTooComplex, new_matcher
from .reasoning import Reasoning
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
from .tool_form import ToolForm, new_tool_form
from .tools import ToolChoice, ToolUse, validate_tools

__all__ = [
    "AnswerForm",
    "CallOrAnswerForm",
    "Choice",
    "ContinuationDecoder",
    "Delta",
    "Form",
    "FormMatcher",
    "FormTooComplex",
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
    "ToolChoice",
    "ToolForm",
    "ToolUse",
    "new_matcher",
    "new_tool_form",
    "parser_tools",
    "reasoning_markers",
    "response_template_of",
    "special_ids",
    "text_decoder",
    "validate_response_format",
    "validate_stop_strings",
    "validate_template",
    "validate_tools",
]
