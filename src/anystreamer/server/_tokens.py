"""Tokens with their log-probabilities, each as a text of its own: what ``logprobs`` asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from .._prompts import tokenizer_of
from .._streams import Logprob, TextChunk
from .._text import ContinuationDecoder, TokenBytes, special_ids, text_decoder
from ._openai_choices import Token

__all__ = ["KnownTokens", "TokenTexts"]

#: The texts and the bytes of tokens that are not the first of a text, by their ids.
KnownTokens = dict[int, tuple[str, bytes | None]]


class TokenTexts:
    """The texts of the tokens of one choice.

    Args:
        tokenizer: of the engine.
        continued_ids: the tokens of the prompt, if the text goes on from it.
        skip_special_tokens: whether the text is without them.
        known: texts and bytes of tokens that were found before. Several of these objects share it.
    """

    def __init__(
        self,
        tokenizer: Any,
        continued_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        known: KnownTokens | None = None,
    ) -> None:
        self._tokenizer = tokenizer_of(tokenizer)
        self._bytes = TokenBytes(self._tokenizer)
        self._special_ids = special_ids(self._tokenizer)
        self._known: KnownTokens = {} if known is None else known
        self._is_first = all(token_id in self._special_ids for token_id in continued_ids)
        new_decoder = partial(
            text_decoder, self._tokenizer, skip_special_tokens=skip_special_tokens
        )
        self._decoder = ContinuationDecoder(new_decoder, continued_ids)
        self._length = 0  # of the text that the tokens so far have made final

    def of(self, chunk: TextChunk) -> Iterator[Token]:
        """The tokens of a chunk, each made when it is wanted."""
        assert chunk.logprobs is not None
        assert chunk.top_logprobs is not None
        return map(self._next, chunk.token_ids, chunk.logprobs, chunk.top_logprobs)

    def of_prompt(self, token_ids: Sequence[int], logprobs: Sequence[Logprob]) -> Iterator[Token]:
        """The tokens of a prompt that the text begins with; nothing predicts the first one."""
        pairs: list[tuple[float | None, Sequence[tuple[int, float]]]] = [(None, ()), *logprobs]
        return (self._next(each, *pair) for each, pair in zip(token_ids, pairs, strict=True))

    def _next(
        self, token_id: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> Token:
        likeliest = [self._token(each, number) for each, number in top]
        token = self._token(token_id, logprob, likeliest)
        # Measured in the decoded text, not in the texts of the tokens: tokens that are parts of one
        # character begin where it begins, and a skipped token adds nothing.
        self._length += len(self._decoder.decode([token_id]))
        self._is_first &= token_id in self._special_ids
        return token

    def _token(self, token_id: int, logprob: float | None, top: Sequence[Token] = ()) -> Token:
        text, utf8 = self._text(token_id)
        return Token(text, logprob, utf8, self._length, top)

    def _text(self, token_id: int) -> tuple[str, bytes | None]:
        """What a token adds to a text: many tokenizers drop the space of a text's first token."""
        if self._is_first:
            text = str(self._tokenizer.decode([token_id]))
            return text, self._bytes.of(token_id, text)
        if token_id not in self._known:
            once, twice = (str(self._tokenizer.decode([token_id] * times)) for times in (1, 2))
            text = twice[len(once) :] if twice.startswith(once) else once
            self._known[token_id] = text, self._bytes.of(token_id, text)
        return self._known[token_id]
