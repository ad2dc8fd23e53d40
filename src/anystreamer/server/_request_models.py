"""Requests in OpenAI's format. A parameter that is not supported is refused by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .._generation import Prompt
from .._text import StopSet, validate_stop_strings
from ._errors import APIError
from ._message_models import Message, ResponseFormat, Tool, _Strict
from ._seed import Seed

__all__ = ["ChatRequest", "CompletionRequest", "TextRequest"]

MAX_MESSAGES = 2048
MAX_STOP_CHARACTERS = 4096  # of all stop strings together

# Below this temperature the likeliest token is always chosen, and dividing by it overflows.
GREEDY = 1e-4


StopString = Annotated[str, Field(min_length=1)]
StopList = Annotated[list[StopString], Field(max_length=16, fail_fast=True)]


class StreamOptions(_Strict):
    """How a streamed response is sent."""

    include_usage: bool | None = None


class TextRequest(_Strict):
    """What both kinds of requests have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopString | StopList | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # Clients send these with the value that changes nothing.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> TextRequest:
        if self.stream_options is not None and not self.stream:
            raise APIError("stream_options needs stream=true", param="stream_options")
        if sum(map(len, self.stop_set)) > MAX_STOP_CHARACTERS:
            raise APIError(
                f"stop: the strings must have at most {MAX_STOP_CHARACTERS} characters together",
                param="stop",
                code="invalid_value",
            )
        return self

    def prepare(self) -> None:
        """Make now what takes long and is needed later: this can be another thread."""
        _ = self.prompts

    @cached_property
    def stop_set(self) -> StopSet:
        """The stop strings, which all answers to the request share."""
        return validate_stop_strings(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether to send the usage at the end of a stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The parameter that limits an answer's tokens, and its value if it is given."""
        return "max_tokens", self.max_tokens

    @property
    @abstractmethod
    def top_logprobs_asked(self) -> int | None:
        """How many of the likeliest tokens to list for each token; None: no log-probabilities."""

    @property
    @abstractmethod
    def prompts(self) -> Sequence[tuple[str, Prompt]]:
        """The prompts, each with the name of its parameter."""

    def arguments(self, choice: int, template: Mapping[str, Any] | None) -> dict[str, Any]:
        """The arguments for ``engine.stream_text``, except the token limit.

        Args:
            choice: the number of the choice, from 0.
            template: the model's response template, if it has one.

        Raises:
            APIError: the model does not support what is asked.
        """
        arguments: dict[str, Any] = {}
        if self.stop_set:
            arguments["stop"] = self.stop_set
        if self.top_logprobs_asked is not None:
            arguments["logprobs"] = True
            if self.top_logprobs_asked:
                arguments["top_logprobs"] = self.top_logprobs_asked
        if self.temperature is not None and self.temperature < GREEDY:
            arguments["do_sample"] = False
        elif self.temperature is not None or self.top_p is not None:
            # OpenAI's API samples, by default at a temperature of 1.
            arguments["do_sample"] = True
            arguments["temperature"] = 1.0 if self.temperature is None else float(self.temperature)
            if self.top_p is not None:
                arguments["top_p"] = float(self.top_p)
        if self.seed is not None:
            arguments["logits_processor"] = [Seed((self.seed + choice) % 2**63)]
        return arguments


class ChatRequest(TextRequest):
    """The body of a POST to ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise APIError(
                "max_tokens and max_completion_tokens mean the same: send one of them",
                param="max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError("top_logprobs needs logprobs=true", param="top_logprobs")
        if self.parallel_tool_calls is not None and self.tools is None:
            raise APIError("parallel_tool_calls needs tools", param="parallel_tool_calls")
        if self.tool_choice not in (None, "auto", "none") and self.tools is None:
            raise APIError("tool_choice needs tools", param="tool_choice")
        if self._form is not None and self.tools is not None and self.tool_choice != "none":
            raise APIError(
                "response_format is not supported together with tools that can be called",
                param="response_format",
            )
        return self

    @property
    def _form(self) -> str | dict[str, Any] | None:
        return None if self.response_format is None else self.response_format.form

    @property
    def token_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().token_limit

    @property
    def top_logprobs_asked(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @cached_property
    def prompts(self) -> Sequence[tuple[str, Prompt]]:
        prompts = [message.as_prompt() for message in self.messages]
        # Some templates want the name of the function whose result a message has.
        calls = [call for each in prompts for call in each.get("tool_calls", ())]
        names = {call["id"]: call["function"]["name"] for call in calls}
        for each in prompts:
            if each.get("tool_call_id") in names:
                each["name"] = names[each["tool_call_id"]]
        return [("messages", prompts)]

    def arguments(self, choice: int, template: Mapping[str, Any] | None) -> dict[str, Any]:
        arguments = super().arguments(choice, template)
        if self.tools is not None and "tool_calls" not in (template or {"fields": ()})["fields"]:
            raise APIError(
                "tools is not supported by this model: its templates have no tool calls",
                param="tools",
            )
        if self.tools is not None:
            arguments["tools"] = [tool.as_argument() for tool in self.tools]
            if self.tool_choice is not None:
                arguments["tool_choice"] = self.tool_choice
            if self.parallel_tool_calls is not None:
                arguments["parallel_tool_calls"] = self.parallel_tool_calls
        if template is not None:
            # Without tools the client expects no call: text that looks like one stays text.
            hidden = ("tool_calls",) if self.tools is None else ()
            fields = {name: each for name, each in template["fields"].items() if name not in hidden}
            arguments["parse_response"] = {**template, "fields": fields}
        if self._form is not None:
            arguments["response_format"] = self._form
        return arguments


class CompletionRequest(TextRequest):
    """The body of a POST to ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=128, fail_fast=True)]
    echo: Literal[False] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if len(self.prompts) * (self.n or 1) > 128:
            raise APIError("a request can have at most 128 answers", param="n")
        return self

    @property
    def top_logprobs_asked(self) -> int | None:
        return self.logprobs

    @cached_property
    def prompts(self) -> Sequence[tuple[str, Prompt]]:
        return [
            ("prompt", each)
            for each in ([self.prompt] if isinstance(self.prompt, str) else self.prompt)
        ]
