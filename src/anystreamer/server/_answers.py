"""Answers in OpenAI's format, whole and in chunks. Pure."""

from __future__ import annotations

import json
import secrets
import time
from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from .._streams import Usage

__all__ = ["DONE", "Answer", "ChatAnswer", "CompletionAnswer", "Tokens", "event", "usage_of"]

Tokens = Sequence[tuple[str, float]]
"""Tokens and their log-probabilities."""

# OpenAI's for what is as good as impossible: JSON has no infinity.
LEAST = -9999.0

DONE = "data: [DONE]\n\n"


def event(data: object) -> str:
    """An event with JSON, in which no line break and no broken character is left."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


class Answer:
    """One answer: its id, its time, and what all of its parts say."""

    prefix: str
    name: str  # of the whole
    chunk_name: str

    def __init__(self, model: str, *, includes_usage: bool) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self._includes_usage = includes_usage

    # -- in chunks

    def first(self, index: int) -> str:
        """What comes before the text of a choice."""
        return ""

    def piece(self, index: int, text: str, tokens: Tokens | None, offset: int) -> str:
        """An event with a piece of text, its tokens if they are told, and where it begins."""
        return self._chunk(index, self._piece(text), None, self._told(tokens, offset))

    def last(self, index: int, finish_reason: str, stop_string: str | None) -> str:
        """The event that ends a choice. Which stop string did, is told as vLLM tells it."""
        said = self._piece("")
        if stop_string is not None:
            said["stop_reason"] = stop_string
        return self._chunk(index, said, finish_reason)

    def usage(self, usage: dict[str, int]) -> str:
        """The event with the usage."""
        return event(self._with({"choices": [], "usage": usage}, self.chunk_name))

    def _chunk(
        self, index: int, said: dict[str, Any], finish_reason: str | None, logprobs: Any = None
    ) -> str:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._includes_usage else {}
        return event(self._with({"choices": [choice], **usage}, self.chunk_name))

    def _with(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        return {**self._head, "object": name, **body}

    @abstractmethod
    def _piece(self, text: str) -> dict[str, Any]:
        """A piece of text, in a chunk."""

    # -- whole

    def whole(
        self, texts: Sequence[tuple[str, str, Tokens | None]], usage: dict[str, int]
    ) -> dict[str, Any]:
        """The answer with all its choices: text, finish reason and, if they are told, tokens."""
        choices = [
            {
                "index": index,
                **self._text(text),
                "logprobs": self._told(tokens, 0),
                "finish_reason": reason,
            }
            for index, (text, reason, tokens) in enumerate(texts)
        ]
        return self._with({"choices": choices, "usage": usage}, self.name)

    @abstractmethod
    def _text(self, text: str) -> dict[str, Any]:
        """All of the text, in a whole answer."""

    # -- log-probabilities

    def _told(self, tokens: Tokens | None, offset: int) -> dict[str, Any] | None:
        if tokens is None:
            return None
        return self._logprobs([(text, max(logprob, LEAST)) for text, logprob in tokens], offset)

    @abstractmethod
    def _logprobs(self, tokens: Tokens, offset: int) -> dict[str, Any]:
        """Tokens with their log-probabilities."""


class ChatAnswer(Answer):
    """An answer of ``/v1/chat/completions``."""

    prefix = "chatcmpl"
    name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def first(self, index: int) -> str:
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def _piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _logprobs(self, tokens: Tokens, offset: int) -> dict[str, Any]:
        content = [
            {
                "token": text,
                "logprob": logprob,
                "bytes": list(text.encode(errors="replace")),
                "top_logprobs": [],
            }
            for text, logprob in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionAnswer(Answer):
    """An answer of ``/v1/completions``."""

    prefix = "cmpl"
    name = chunk_name = "text_completion"

    def _piece(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Tokens, offset: int) -> dict[str, Any]:
        lengths = [len(text) for text, _ in tokens]
        return {
            "tokens": [text for text, _ in tokens],
            "token_logprobs": [logprob for _, logprob in tokens],
            "top_logprobs": None,
            "text_offset": list(accumulate(lengths[:-1], initial=offset)) if tokens else [],
        }


def usage_of(usages: Sequence[Usage], copies: int) -> dict[str, int]:
    """The usage of all choices, *copies* of them to each prompt, which counts once."""
    prompt = sum(usage.prompt_tokens for usage in usages[::copies])
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
