"""Removes the keys of a request from text that its server sends back: errors are logged. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2 as httpx

__all__ = ["without_secrets"]

# Words in the names of headers, and of parameters of a URL, whose values are secret.
_NAMES = ("auth", "key", "token", "secret", "cookie", "password", "signature")
# Shorter values are words, such as the scheme of a header.
MIN_LENGTH = 6
HIDDEN = "[hidden]"


def without_secrets(text: str, request: httpx.Request) -> str:
    """Replace each key and each password of a request in a text of its server."""
    for secret in sorted(_secrets_of(request), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets_of(request: httpx.Request) -> set[str]:
    return {part for part in _values_of(request) if len(part) >= MIN_LENGTH}


def _values_of(request: httpx.Request) -> Iterator[str]:
    yield request.url.password
    for name, value in [*request.headers.multi_items(), *request.url.params.multi_items()]:
        if any(word in name.lower() for word in _NAMES):
            yield value
            scheme, _, key = value.rpartition(" ")
            yield key
            if scheme == "Basic":
                yield _password_of(key)


def _password_of(key: str) -> str:
    try:
        return base64.b64decode(key).decode().partition(":")[2]
    except ValueError:
        return ""
