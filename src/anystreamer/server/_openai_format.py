"""Responses in OpenAI's format, whole and in chunks. Pure."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._streams import TextChunk, Usage
from ._openai_choices import ChatChoiceBuilder, ChoiceBuilder, TextChoiceBuilder, Token, as_json

__all__ = [
    "DONE",
    "ChatCompletionBuilder",
    "CompletionBuilder",
    "TextCompletionBuilder",
    "event",
    "usage_of",
]

DONE = "data: [DONE]\n\n"


def event(data: object) -> str:
    """An event with JSON."""
    return f"data: {as_json(data)}\n\n"


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
        custom_tools: frozenset[str] = frozenset(),
    ) -> None:
        self._head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self._includes_usage = includes_usage
        # What each choice has used so far. None if events do not have it.
        self._running_usage: list[RunningUsage] | None = [] if includes_running_usage else None
        self._top = top
        self._custom_tools = custom_tools
        self._choices: list[ChoiceBuilder] = []
        self._begun: set[int] = set()  # choices that have had an event
        # By choice and field: what comes before and after the text in an event with text alone.
        self._around_text: dict[tuple[int, str], tuple[str, str]] = {}

    @property
    def origin(self) -> tuple[str, str]:
        """The response's id, and the model's name in it."""
        return self._head["id"], self._head["model"]

    def add_choice(self, prompt_tokens: int = 0) -> None:
        """Add one more choice, to a prompt of this many tokens."""
        self._choices.append(self.new_choice(self._top, self._custom_tools))
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
