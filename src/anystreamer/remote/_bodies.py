"""Reads the error in a body that is not an answer: JSON, a page of HTML, or text. Pure."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from ._shapes import MAX_MESSAGE, error_in, error_message

__all__ = ["error_of", "message_of_body"]

_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")


def error_of(body: bytes) -> Any:
    """The error that a body of JSON reports; None if it reports none."""
    try:
        return error_in(_object_of(body))
    except Exception:  # JSON of any other shape, which can raise any error
        return None


def message_of_body(body: bytes) -> str:
    """The message in a body, in one line of at most `MAX_MESSAGE` characters; empty if none."""
    text = error_message(error_of(body) or _object_of(body))
    if not text:
        text = body.decode(errors="replace")
        if text.lstrip().startswith("<"):
            text = _text_of_page(text)
    return " ".join(text.split())[:MAX_MESSAGE]


def _object_of(body: bytes) -> Mapping[str, Any]:
    """Parse a body as an object of JSON. Returns an empty one if it is something else."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(sent, list) and len(sent) == 1:  # Gemini
        (sent,) = sent
    return sent if isinstance(sent, Mapping) else {}


def _text_of_page(page: str) -> str:
    title = _TITLE.search(page)
    return html.unescape(title[1] if title else _TAG.sub(" ", page))
