"""The choices of a response in OpenAI's format: their texts, tool calls and tokens. Pure."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._streams import TextChunk
from ._custom_tools import call_in_chat
from ._sendable import sendable

__all__ = [
    "ChatChoiceBuilder",
    "ChoiceBuilder",
    "TextChoiceBuilder",
    "Token",
    "as_json",
    "field_of",
    "logprob_entry",
]

# OpenAI's value for a probability of practically 0: JSON has no infinity.
MIN_LOGPROB = -9999.0

# Names that response templates give to the reasoning.
REASONING = ("reasoning_content", "reasoning", "thinking")


def as_json(data: object) -> str:
    """JSON that escapes line breaks and lone surrogates."""
    return json.dumps(data, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a text of its own, and the likeliest tokens in its place."""

    text: str
    logprob: float | None  # None for the first token of a prompt
    utf8: bytes | None  # None if they are not known
    start: int = 0  # of its text, in characters from the beginning of the choice's
    top: Sequence[Token] = ()


class ChoiceBuilder(ABC):
    """One choice: takes the chunks of a stream, and formats each of them, and all together.

    *top* is the number of likeliest tokens to list for each token; None lists no tokens at all.
    *custom* are the names of tools whose calls have a text as their input.
    """

    def __init__(self, top: int | None, custom: frozenset[str] = frozenset()) -> None:
        self._custom = custom
        self._top = top
        # For a whole response: each value as JSON, since all at the end would hold the event loop.
        self._kept: dict[str, list[str] | None] | None = None
        if top is not None:
            self._kept = {
                name: None if values is None else [] for name, values in self._logprobs(()).items()
            }

    def take(self, chunk: TextChunk, tokens: Sequence[Token]) -> dict[str, Any]:
        """Take a chunk and its tokens. Returns both as a part of an event."""
        logprobs = None if self._kept is None else self._logprobs(tokens)
        return {**self._delta(chunk), "logprobs": logprobs}

    def take_tokens(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Take tokens without a text. Returns the part of an event."""
        logprobs = self._logprobs(tokens) if tokens and self._kept is not None else None
        return {**self.empty_delta, "logprobs": logprobs}

    def keep(self, chunk: TextChunk | None, tokens: Sequence[Token]) -> None:
        """Take a chunk, or only tokens, for a whole response."""
        if chunk is not None:
            self.take_text(chunk)
        if self._kept is None or not tokens:
            return
        for name, values in self._logprobs(tokens).items():
            kept = self._kept[name]
            if kept is not None:
                kept += map(as_json, values)

    @property
    def kept_logprobs(self) -> str:
        """All tokens that were kept, as JSON."""
        if self._kept is None:
            return "null"
        lists = {
            name: "null" if values is None else f"[{','.join(values)}]"
            for name, values in self._kept.items()
        }
        return "{" + ",".join(f'"{name}":{values}' for name, values in lists.items()) + "}"

    def first_delta(self, delta: dict[str, Any]) -> dict[str, Any] | None:
        """What an event of its own has, before the event of the first *delta*."""
        return None

    def reason(self, finish_reason: str) -> str:
        """The finish reason, once all chunks have been taken."""
        return finish_reason

    def _delta(self, chunk: TextChunk) -> dict[str, Any]:
        """A chunk, in an event."""
        taken = self.take_text(chunk)
        return taken if isinstance(taken, dict) else self.text_delta(*taken)

    @abstractmethod
    def take_text(self, chunk: TextChunk) -> tuple[str, str] | dict[str, Any]:
        """Take a chunk. Returns its field and its text; or its part of an event, if not text."""

    @abstractmethod
    def text_delta(self, field: str, text: str) -> dict[str, Any]:
        """Text of a field, in an event."""

    @property
    @abstractmethod
    def empty_delta(self) -> dict[str, Any]:
        """What the last event has, which adds nothing but the finish reason."""

    @property
    @abstractmethod
    def message(self) -> dict[str, Any]:
        """All chunks together, in a whole response."""

    @abstractmethod
    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Tokens with their log-probabilities."""


class ChatChoiceBuilder(ChoiceBuilder):
    """A message."""

    def __init__(self, top: int | None, custom: frozenset[str] = frozenset()) -> None:
        super().__init__(top, custom)
        self._texts: dict[str, list[str]] = {}
        self._calls: list[Mapping[str, Any]] = []
        self._last_field = ""  # of the previous chunk

    def first_delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        content = "" if "content" in delta["delta"] or not delta["delta"] else None
        return {"delta": {"role": "assistant", "content": content}, "logprobs": None}

    def reason(self, finish_reason: str) -> str:
        return "tool_calls" if self._calls and finish_reason == "stop" else finish_reason

    def take_text(self, chunk: TextChunk) -> tuple[str, str] | dict[str, Any]:
        field, text = field_of(chunk)
        if not isinstance(text, str):
            first = len(self._calls)
            calls = [call_in_chat(call, self._custom) for call in text]
            self._calls += calls
            self._last_field = field
            indexed = [{"index": first + index, **call} for index, call in enumerate(calls)]
            return {"delta": {"tool_calls": indexed}}
        if field != self._last_field and field in self._texts:  # text of another field came between
            text = f"\n{text}"
        self._last_field = field
        self._texts.setdefault(field, []).append(text)
        return field, text

    def text_delta(self, field: str, text: str) -> dict[str, Any]:
        return {"delta": {field: text}}

    @property
    def empty_delta(self) -> dict[str, Any]:
        return {"delta": {}}

    @property
    def message(self) -> dict[str, Any]:
        texts = {field: "".join(parts) for field, parts in self._texts.items()}
        content = texts.pop("content", None if self._calls else "")
        calls = {"tool_calls": self._calls} if self._calls else {}
        message = {"role": "assistant", "content": content, "refusal": None, **texts, **calls}
        return {"message": message}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = [
            {
                **logprob_entry(token),
                "top_logprobs": [logprob_entry(each) for each in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class TextChoiceBuilder(ChoiceBuilder):
    """A text."""

    def __init__(self, top: int | None, custom: frozenset[str] = frozenset()) -> None:
        super().__init__(top, custom)
        self._chunks: list[str] = []

    def take_text(self, chunk: TextChunk) -> tuple[str, str]:
        self._chunks.append(chunk)
        return "text", chunk

    def text_delta(self, field: str, text: str) -> dict[str, Any]:
        return {field: text}

    @property
    def empty_delta(self) -> dict[str, Any]:
        return {"text": ""}

    @property
    def message(self) -> dict[str, Any]:
        return {"text": "".join(self._chunks)}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        tops = None
        if self._top:
            # By their texts, which several may have: the likelier one counts. The chosen one is
            # always among them.
            tops = [
                None
                if token.logprob is None
                else {each.text: _logprob(each) for each in [token, *reversed(token.top)]}
                for token in tokens
            ]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_logprob(token) for token in tokens],
            "top_logprobs": tops,
            "text_offset": [token.start for token in tokens],
        }


def field_of(chunk: TextChunk) -> tuple[str, str | list[dict[str, Any]]]:
    """The field that a chunk belongs to, and its text; or, for ``tool_calls``, its calls."""
    field = chunk.field or "content"
    value = chunk.value if chunk.field else str(chunk)
    if field == "tool_calls":
        if calls := _calls(value):
            return field, calls
        field = "content"  # malformed: the client gets it as text
    elif field in REASONING:
        field = "reasoning_content"
    return field, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _calls(value: Any) -> list[dict[str, Any]]:
    """The calls of a value, which some templates (Cohere, Mistral) parse as a list.

    An empty list if one of them is malformed.
    """
    calls = [_call(each) for each in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(value: Any) -> dict[str, Any] | None:
    """A tool call, from a response template's form to OpenAI's; None if it is not a tool call."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict):
        return None
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return None
    try:
        arguments = _arguments(function.get("arguments"))
    except ValueError:
        return None
    own_id = value.get("id")  # some models number their calls, and refer to them by it
    return {
        "id": own_id if own_id and isinstance(own_id, str) else f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(value: Any) -> str:
    """The arguments of a call, as JSON that clients can parse and send back.

    Raises:
        ValueError: they have a NaN or an infinity, for which JSON has no number.
    """
    if not isinstance(value, str):
        value = json.dumps({} if value is None else value, ensure_ascii=False, allow_nan=False)
    return sendable(value)


def logprob_entry(token: Token) -> dict[str, Any]:
    """A token in a list of tokens."""
    utf8 = None if token.utf8 is None else list(token.utf8)
    return {"token": token.text, "logprob": _logprob(token), "bytes": utf8}


def _logprob(token: Token) -> float | None:
    if token.logprob is None:
        return None
    return token.logprob if token.logprob > MIN_LOGPROB else MIN_LOGPROB  # also for what is NaN
