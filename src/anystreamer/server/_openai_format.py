"""Responses in OpenAI's format, whole and in chunks. Pure."""

from __future__ import annotations

import json
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._streams import TextChunk, Usage

__all__ = [
    "DONE",
    "ChatCompletionBuilder",
    "CompletionBuilder",
    "TextCompletionBuilder",
    "Token",
    "as_json",
    "event",
    "field_of",
    "logprob_entry",
    "usage_of",
]

# OpenAI's value for a probability of practically 0: JSON has no infinity.
MIN_LOGPROB = -9999.0

DONE = "data: [DONE]\n\n"

_SURROGATE = re.compile("[\ud800-\udfff]")

# Names that response templates give to the reasoning.
REASONING = ("reasoning_content", "reasoning", "thinking")


def as_json(data: object) -> str:
    """JSON that escapes line breaks and lone surrogates."""
    return json.dumps(data, separators=(",", ":"))


def event(data: object) -> str:
    """An event with JSON."""
    return f"data: {as_json(data)}\n\n"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a text of its own, and the likeliest tokens in its place."""

    text: str
    logprob: float | None  # None for the first token of a prompt
    utf8: bytes | None  # None where they are not known
    start: int = 0  # of its text, in characters from the beginning of the choice's
    top: Sequence[Token] = ()


class ChoiceBuilder(ABC):
    """One choice: takes the chunks of a stream, and formats each of them, and all together.

    *top* is the number of likeliest tokens to list for each token; None lists no tokens at all.
    """

    def __init__(self, top: int | None) -> None:
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

    def __init__(self, top: int | None) -> None:
        super().__init__(top)
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []
        self._last_field = ""  # that of the previous chunk

    def first_delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        content = "" if "content" in delta["delta"] or not delta["delta"] else None
        return {"delta": {"role": "assistant", "content": content}, "logprobs": None}

    def reason(self, finish_reason: str) -> str:
        return "tool_calls" if self._calls and finish_reason == "stop" else finish_reason

    def take_text(self, chunk: TextChunk) -> tuple[str, str] | dict[str, Any]:
        field, text = field_of(chunk)
        if not isinstance(text, str):
            first = len(self._calls)
            self._calls += text
            self._last_field = field
            indexed = [{"index": first + index, **call} for index, call in enumerate(text)]
            return {"delta": {"tool_calls": indexed}}
        if field != self._last_field and field in self._texts:  # it goes on after another field
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

    def __init__(self, top: int | None) -> None:
        super().__init__(top)
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


@dataclass(slots=True)
class RunningUsage:
    """What a choice has used so far."""

    prompt: int
    completion: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """As in an event."""
        return _counts(self.prompt, self.completion)


class CompletionBuilder:
    """The response to a request: its id, its time, its choices, and what all its parts repeat."""

    prefix: str
    name: str  # of the type of a whole response
    chunk_name: str
    new_choice: type[ChoiceBuilder]

    def __init__(
        self,
        model: str,
        *,
        includes_usage: bool,
        top: int | None,
        includes_running_usage: bool = False,
    ) -> None:
        self._head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self._includes_usage = includes_usage
        # Of each choice: what it has used so far. None where no event says it.
        self._running_usage: list[RunningUsage] | None = [] if includes_running_usage else None
        self._top = top
        self._choices: list[ChoiceBuilder] = []
        self._begun: set[int] = set()  # choices that have had an event
        # By choice and field: what is around the text in an event that has nothing else.
        self._around_text: dict[tuple[int, str], tuple[str, str]] = {}

    @property
    def origin(self) -> tuple[str, str]:
        """The response's id, and the model's name in it."""
        return self._head["id"], self._head["model"]

    def add_choice(self, prompt_tokens: int = 0) -> None:
        """Add one more choice, to a prompt of this many tokens."""
        self._choices.append(self.new_choice(self._top))
        if self._running_usage is not None:
            self._running_usage.append(RunningUsage(prompt_tokens))

    def count(self, index: int, tokens: int) -> None:
        """Count tokens of a choice, before the event that they are in."""
        if self._running_usage is not None:
            self._running_usage[index].completion += tokens

    # -- in chunks

    def chunk(self, index: int, chunk: TextChunk | None, tokens: Sequence[Token]) -> str:
        """Events with a chunk of a choice, and its tokens; or with more of its tokens only."""
        choice = self._choices[index]
        if chunk is None:
            return self._events(index, choice.take_tokens(tokens), None)
        is_usual = self._top is None and self._running_usage is None
        if not is_usual or index not in self._begun:
            return self._events(index, choice.take(chunk, tokens), None)
        # The usual event has nothing new except its text. The rest is encoded once.
        taken = choice.take_text(chunk)
        if isinstance(taken, dict):
            return self._event(index, {**taken, "logprobs": None}, None)
        field, text = taken
        before, after = self._around_text.get((index, field)) or self._split(index, field)
        return f"{before}{json.dumps(text)}{after}"

    def _split(self, index: int, field: str) -> tuple[str, str]:
        """What comes before and after the text of a field in an event of a choice."""
        mark = secrets.token_hex(16)  # no name of a model has it
        delta = self._choices[index].text_delta(field, mark)
        before, after = self._event(index, {**delta, "logprobs": None}, None).split(f'"{mark}"')
        self._around_text[index, field] = before, after
        return before, after

    def last(
        self, index: int, finish_reason: str, stop_string: str | None, tokens: Sequence[Token]
    ) -> str:
        """Events that end a choice, with the tokens after its last chunk.

        They name the stop string that ended it, as vLLM's do.
        """
        choice = self._choices[index]
        delta = choice.take_tokens(tokens)
        if stop_string is not None:
            delta["stop_reason"] = stop_string
        return self._events(index, delta, choice.reason(finish_reason))

    def usage(self, usage: dict[str, Any]) -> str:
        """The event with the usage."""
        return event(self._with({"choices": [], "usage": usage}, self.chunk_name))

    def _events(self, index: int, delta: dict[str, Any], finish_reason: str | None) -> str:
        first = None
        if index not in self._begun:
            self._begun.add(index)
            first = self._choices[index].first_delta(delta)
        before = "" if first is None else self._event(index, first, None)
        return before + self._event(index, delta, finish_reason)

    def _event(self, index: int, delta: dict[str, Any], finish_reason: str | None) -> str:
        choice = {"index": index, **delta, "finish_reason": finish_reason}
        usage: dict[str, Any] = {"usage": None} if self._includes_usage else {}
        if self._running_usage is not None:
            usage = {"usage": self._running_usage[index].counts}
        return event(self._with({"choices": [choice], **usage}, self.chunk_name))

    def _with(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        return {**self._head, "object": name, **body}

    # -- whole

    def keep(self, index: int, chunk: TextChunk | None, tokens: Sequence[Token]) -> None:
        """Keep a chunk of a choice, and its tokens; or more of its tokens only."""
        self._choices[index].keep(chunk, tokens)

    def full_response(self, finish_reasons: Sequence[str], usage: dict[str, Any]) -> str:
        """The response with all chunks that were kept, as JSON."""
        mark = secrets.token_hex(16)  # no text has it
        choices = [
            {
                "index": index,
                **choice.message,
                "logprobs": mark,
                "finish_reason": choice.reason(reason),
            }
            for index, (choice, reason) in enumerate(
                zip(self._choices, finish_reasons, strict=True)
            )
        ]
        whole = as_json(self._with({"choices": choices, "usage": usage}, self.name))
        before, *after = whole.split(f'"{mark}"')
        return before + "".join(
            choice.kept_logprobs + part for choice, part in zip(self._choices, after, strict=True)
        )


class ChatCompletionBuilder(CompletionBuilder):
    """A response of ``/v1/chat/completions``."""

    prefix = "chatcmpl"
    name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    new_choice = ChatChoiceBuilder


class TextCompletionBuilder(CompletionBuilder):
    """A response of ``/v1/completions``."""

    prefix = "cmpl"
    name = chunk_name = "text_completion"
    new_choice = TextChoiceBuilder


def usage_of(usages: Sequence[Usage], copies: int) -> dict[str, Any]:
    """The usage of all choices, *copies* for each prompt. A prompt's tokens count once."""
    prompt = sum(usage.prompt_tokens for usage in usages[::copies])
    cached = sum(usage.cached_tokens for usage in usages[::copies])
    completion = sum(usage.completion_tokens for usage in usages)
    return _counts(prompt, completion, cached)


def _counts(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}),
    }


def field_of(chunk: TextChunk) -> tuple[str, str | list[dict[str, Any]]]:
    """The field of a message that a chunk is for, and its text; or its calls: ``tool_calls``."""
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
    """The calls of a value, which some templates (Cohere, Mistral) parse as a list; or none."""
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
    except ValueError:  # NaN, which Python's parser of JSON takes, and others do not
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
        ValueError: there is none.
    """
    if not isinstance(value, str):
        value = json.dumps({} if value is None else value, ensure_ascii=False, allow_nan=False)
    # Half a pair of surrogates, which a model can write as an escape, would be refused then.
    return _SURROGATE.sub("\ufffd", value)


def logprob_entry(token: Token) -> dict[str, Any]:
    """A token in a list of tokens."""
    utf8 = None if token.utf8 is None else list(token.utf8)
    return {"token": token.text, "logprob": _logprob(token), "bytes": utf8}


def _logprob(token: Token) -> float | None:
    if token.logprob is None:
        return None
    return token.logprob if token.logprob > MIN_LOGPROB else MIN_LOGPROB  # also for what is NaN
