"""Text of tool calls that clients can send back: without halves of surrogate pairs."""

from __future__ import annotations

import re

__all__ = ["sendable"]

_SURROGATE = re.compile("[\ud800-\udfff]")


def sendable(text: str) -> str:
    """Replace each half of a surrogate pair, which a model can write as an escape in JSON.

    A client would send it back in the next request, which would be refused.
    """
    return _SURROGATE.sub("\ufffd", text)
