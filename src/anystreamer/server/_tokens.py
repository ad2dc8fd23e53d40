"""Tokens as clients are told of them, each as a text of its own."""

from __future__ import annotations

from typing import Any

from .._generation import tokenizer_of
from .._streams import TextChunk
from ._openai_format import Token

__all__ = ["TokenTexts"]


class TokenTexts:
    """The texts of the tokens of one choice."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer_of(tokenizer)
        self._known: dict[int, str] = {}  # of tokens that are not the first
        self._is_first = True

    def of(self, piece: TextChunk) -> list[Token]:
        """The tokens of a piece."""
        assert piece.logprobs is not None
        assert piece.top_logprobs is not None
        tokens = []
        for token_id, logprob, top in zip(
            piece.token_ids, piece.logprobs, piece.top_logprobs, strict=True
        ):
            likeliest = [(self._text(each), number) for each, number in top]
            tokens.append(Token(self._text(token_id), logprob, likeliest))
            self._is_first = False
        return tokens

    def _text(self, token_id: int) -> str:
        """What it adds to a text: many tokenizers drop the space of a text's first token."""
        if self._is_first:
            return str(self._tokenizer.decode([token_id]))
        if token_id not in self._known:
            once, twice = (str(self._tokenizer.decode([token_id] * times)) for times in (1, 2))
            self._known[token_id] = twice[len(once) :] if twice.startswith(once) else once
        return self._known[token_id]
