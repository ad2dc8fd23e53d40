"""Answers in OpenAI's format, whole and in chunks. Pure."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .._streams import TextChunk, Usage

__all__ = [
    "DONE",
    "ChatCompletionBuilder",
    "CompletionBuilder",
    "TextCompletionBuilder",
    "Token",
    "event",
    "usage_of",
]

# OpenAI's for what is as good as impossible: JSON has no infinity.
MIN_LOGPROB = -9999.0

DONE = "data: [DONE]\n\n"

# What response templates call the reasoning.
REASONING = ("reasoning_content", "reasoning", "thinking")


def event(data: object) -> str:
    """An event with JSON, in which no line break and no broken character is left."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a text, its log-probability, and the likeliest tokens in its place with theirs."""

    text: str
    logprob: float
    top: Sequence[tuple[str, float]] = ()


class ChoiceBuilder(ABC):
    """One choice: takes the pieces of a stream, and says what is told of each, and of all.

    *top* says how many tokens are told in the place of each; None tells of no tokens.
    """

    def __init__(self, top: int | None) -> None:
        self._top = top
        self._length = 0
        self.logprobs = None if top is None else self._logprobs((), 0)

    def take(self, piece: TextChunk, tokens: Sequence[Token]) -> dict[str, Any]:
        """Take a piece and its tokens. Returns them for a chunk."""
        logprobs = None
        if self.logprobs is not None:
            logprobs = self._logprobs(tokens, self._length)
            for name, values in logprobs.items():
                if values is not None:
                    self.logprobs[name] += values
        self._length += len(piece)
        return {**self._say(piece), "logprobs": logprobs}

    def first_delta(self, said: dict[str, Any]) -> dict[str, Any] | None:
        """What has a chunk of its own before the first one."""
        return None

    def reason(self, finish_reason: str) -> str:
        """The finish reason, once all has been said."""
        return finish_reason

    @abstractmethod
    def _say(self, piece: TextChunk) -> dict[str, Any]:
        """A piece, in a chunk."""

    @property
    @abstractmethod
    def empty_delta(self) -> dict[str, Any]:
        """What the last chunk has, which only says why it is the last."""

    @property
    @abstractmethod
    def message(self) -> dict[str, Any]:
        """All of it, in a whole answer."""

    @abstractmethod
    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Tokens with their log-probabilities. The first one's text begins at *offset*."""


class ChatChoiceBuilder(ChoiceBuilder):
    """A message."""

    def __init__(self, top: int | None) -> None:
        super().__init__(top)
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []
        self._last = ""  # the field of the piece before

    def first_delta(self, said: dict[str, Any]) -> dict[str, Any]:
        delta = said["delta"]
        content = "" if "content" in delta or not delta else None
        return {"delta": {"role": "assistant", "content": content}, "logprobs": None}

    def reason(self, finish_reason: str) -> str:
        return "tool_calls" if self._calls and finish_reason == "stop" else finish_reason

    def _say(self, piece: TextChunk) -> dict[str, Any]:
        field = piece.field or "content"
        value = piece.value if piece.field else str(piece)
        call = _call(value) if field == "tool_calls" else None
        if call is not None:
            self._calls.append(call)
            self._last = field
            return {"delta": {"tool_calls": [{"index": len(self._calls) - 1, **call}]}}
        if field == "tool_calls":  # malformed: nobody can make this call, but it was said
            field = "content"
        elif field in REASONING:
            field = "reasoning_content"
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if field != self._last and field in self._texts:  # taken up again after another one
            text = f"\n{text}"
        self._last = field
        self._texts.setdefault(field, []).append(text)
        return {"delta": {field: text}}

    @property
    def empty_delta(self) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None}

    @property
    def message(self) -> dict[str, Any]:
        texts = {field: "".join(parts) for field, parts in self._texts.items()}
        content = texts.pop("content", None if self._calls else "")
        calls = {"tool_calls": self._calls} if self._calls else {}
        message = {"role": "assistant", "content": content, "refusal": None, **texts, **calls}
        return {"message": message}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        content = [
            {
                **_logprob_entry(token.text, token.logprob),
                "top_logprobs": [_logprob_entry(*each) for each in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class TextChoiceBuilder(ChoiceBuilder):
    """A text."""

    def __init__(self, top: int | None) -> None:
        super().__init__(top)
        self._parts: list[str] = []

    def _say(self, piece: TextChunk) -> dict[str, Any]:
        self._parts.append(piece)
        return {"text": piece}

    @property
    def empty_delta(self) -> dict[str, Any]:
        return {"text": "", "logprobs": None}

    @property
    def message(self) -> dict[str, Any]:
        return {"text": "".join(self._parts)}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        lengths = [len(token.text) for token in tokens]
        tops = None
        if self._top:
            # By their texts, which several may have: the likelier one counts. The chosen one is
            # always among them.
            tops = [
                {
                    text: max(logprob, MIN_LOGPROB)
                    for text, logprob in [(token.text, token.logprob), *reversed(token.top)]
                }
                for token in tokens
            ]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [max(token.logprob, MIN_LOGPROB) for token in tokens],
            "top_logprobs": tops,
            "text_offset": list(accumulate(lengths[:-1], initial=offset)) if tokens else [],
        }


class CompletionBuilder:
    """The answer to a request: its id, its time, its choices, and what all of its parts say."""

    prefix: str
    name: str  # of the whole
    chunk_name: str
    new_choice: type[ChoiceBuilder]

    def __init__(self, model: str, *, includes_usage: bool, top: int | None) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self._includes_usage = includes_usage
        self._top = top
        self._choices: list[ChoiceBuilder] = []
        self._opened: set[int] = set()

    def add_choice(self) -> None:
        """One more."""
        self._choices.append(self.new_choice(self._top))

    # -- in chunks

    def piece(self, index: int, piece: TextChunk, tokens: Sequence[Token]) -> str:
        """Events with a piece of a choice, and its tokens."""
        return self._chunks(index, self._choices[index].take(piece, tokens), None)

    def last(self, index: int, finish_reason: str, stop_string: str | None) -> str:
        """Events that end a choice. Which stop string did, is told as vLLM tells it."""
        choice = self._choices[index]
        said = choice.empty_delta
        if stop_string is not None:
            said["stop_reason"] = stop_string
        return self._chunks(index, said, choice.reason(finish_reason))

    def usage(self, usage: dict[str, int]) -> str:
        """The event with the usage."""
        return event(self._with({"choices": [], "usage": usage}, self.chunk_name))

    def _chunks(self, index: int, said: dict[str, Any], finish_reason: str | None) -> str:
        opening = None
        if index not in self._opened:
            self._opened.add(index)
            opening = self._choices[index].first_delta(said)
        before = "" if opening is None else self._chunk(index, opening, None)
        return before + self._chunk(index, said, finish_reason)

    def _chunk(self, index: int, said: dict[str, Any], finish_reason: str | None) -> str:
        choice = {"index": index, **said, "finish_reason": finish_reason}
        usage = {"usage": None} if self._includes_usage else {}
        return event(self._with({"choices": [choice], **usage}, self.chunk_name))

    def _with(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        return {**self._head, "object": name, **body}

    # -- whole

    def take(self, index: int, piece: TextChunk, tokens: Sequence[Token]) -> None:
        """Keep a piece of a choice, and its tokens."""
        self._choices[index].take(piece, tokens)

    def full_response(self, finish_reasons: Sequence[str], usage: dict[str, int]) -> dict[str, Any]:
        """The answer, with all that was taken."""
        choices = [
            {
                "index": index,
                **choice.message,
                "logprobs": choice.logprobs,
                "finish_reason": choice.reason(reason),
            }
            for index, (choice, reason) in enumerate(
                zip(self._choices, finish_reasons, strict=True)
            )
        ]
        return self._with({"choices": choices, "usage": usage}, self.name)


class ChatCompletionBuilder(CompletionBuilder):
    """An answer of ``/v1/chat/completions``."""

    prefix = "chatcmpl"
    name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    new_choice = ChatChoiceBuilder


class TextCompletionBuilder(CompletionBuilder):
    """An answer of ``/v1/completions``."""

    prefix = "cmpl"
    name = chunk_name = "text_completion"
    new_choice = TextChoiceBuilder


def usage_of(usages: Sequence[Usage], copies: int) -> dict[str, int]:
    """The usage of all choices, *copies* of them to each prompt, which counts once."""
    prompt = sum(usage.prompt_tokens for usage in usages[::copies])
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _call(value: Any) -> dict[str, Any] | None:
    """What a response template made of a tool call, as clients take it; None if it is none."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict):
        return None
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return None
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    own_id = value.get("id")  # some models number their calls, and know them by that
    return {
        "id": own_id if own_id and isinstance(own_id, str) else f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _logprob_entry(text: str, logprob: float) -> dict[str, Any]:
    # What is no whole character has bytes that its text does not tell.
    known = None if "\ufffd" in text else list(text.encode(errors="replace"))
    return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": known}
