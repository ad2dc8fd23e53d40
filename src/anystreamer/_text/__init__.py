"""From token ids to text. Pure: no async, no I/O, nothing from the rest of this package."""

from .decoder import SupportsDecode, TextDecoder, text_decoder
from .response_parser import Piece, ResponseParser, checked_template, response_template_of
from .stop_strings import StopStrings

__all__ = [
    "Piece",
    "ResponseParser",
    "StopStrings",
    "SupportsDecode",
    "TextDecoder",
    "checked_template",
    "response_template_of",
    "text_decoder",
]
