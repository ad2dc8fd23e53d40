"""The bytes of a token, where its text does not show them: half a character is U+FFFD."""

from typing import Any

from .base import rust_backend
from .decoder_plan import fallback_byte, read_plan


class TokenBytes:
    """Looks up the bytes of a tokenizer's tokens.

    Args:
        tokenizer: one of transformers or tokenizers, or any other: then little is known.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = rust_backend(tokenizer)
        self._plan = None if backend is None else read_plan(backend)
        self._to_token = getattr(tokenizer, "convert_ids_to_tokens", None)
        if self._plan is not None:
            self._to_token = backend.id_to_token

    def of(self, token_id: int, text: str) -> bytes | None:
        """The bytes of a token that adds *text* to a text; None where they are not known."""
        if "\ufffd" not in text:
            return text.encode(errors="replace")
        token: Any = None if self._to_token is None else self._to_token(token_id)
        if isinstance(token, str):
            token = fallback_byte(token) if self._plan is None else self._plan.entry(token)[1]
        if isinstance(token, str):
            # Without byte tokens no token is half a character: this one has U+FFFD in it.
            return token.encode() if self._plan is not None and token == text else None
        known = isinstance(token, bytes) and token.decode(errors="replace") == text
        return token if known else None
