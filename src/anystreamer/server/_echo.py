"""``echo``: answers that begin with their prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._model import is_encoder_decoder, uses_torch
from .._prompts import Prompt, TokenIds, tokenizer_of
from .._streams import TextChunk, TextStream
from ._errors import APIError
from ._openai_choices import Token
from ._prompt_scores import PromptScores
from ._tokens import TokenTexts

__all__ = ["Echo"]


class Echo:
    """The prompt of one or several answers.

    Args:
        prompt: a text, or its ids.
        engine: the engine that answers it.
        top: how many of the likeliest tokens to list for each token of the prompt. None: the tokens
            of the prompt are not listed.

    Raises:
        APIError: the engine's model cannot score a prompt.
    """

    def __init__(self, prompt: Prompt, engine: Any, top: int | None) -> None:
        self._prompt = prompt
        self._engine = engine
        #: goes to ``generate()`` as a logits processor
        self.scores: PromptScores | None = None
        if top is None:
            return
        model = getattr(engine, "model", None)
        if model is None or not uses_torch(model) or is_encoder_decoder(model):
            raise APIError(
                "echo with logprobs is not supported by this model: send one of them", param="echo"
            )
        self.scores = PromptScores(model, top)

    def chunk(self, stream: TextStream, *, skip_special_tokens: bool) -> TextChunk:
        """The text of the prompt, as a chunk."""
        text = self._prompt
        if isinstance(text, TokenIds):
            decoding = tokenizer_of(self._engine.tokenizer)
            text = str(decoding.decode(list(text), skip_special_tokens=skip_special_tokens))
        assert isinstance(text, str)
        return TextChunk(text, stream.prompt_token_ids)

    def tokens(self, stream: TextStream, texts: TokenTexts) -> Iterable[Token]:
        """The tokens of the prompt, once the answer has begun. Empty if they are not listed.

        Raises:
            RuntimeError: the model has not called the processor.
        """
        if self.scores is None:
            return ()
        if self.scores.logprobs is None:
            raise RuntimeError("this model's generate() does not call logits processors")
        return texts.of_prompt(stream.prompt_token_ids, self.scores.logprobs)
