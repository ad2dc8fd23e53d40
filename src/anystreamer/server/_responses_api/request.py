"""Requests of OpenAI's Responses API: each becomes a chat request, which means the same."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from .._errors import APIError
from .._fields import Fixed, Ignored, Strict, chosen_by
from .._message_models import JSONSchema
from .._openai_choices import as_json
from .._request_body import validated
from .._request_models import MAX_MESSAGES, ChatRequest, Effort
from .input import Conversation, Item
from .tools import (
    MAX_TOOLS,
    AllowedTools,
    NamedTool,
    Offered,
    OfflineSearch,
    Tool,
    offered_tools,
)

__all__ = ["ResponsesRequest"]

MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"

# What needs stored responses, with what to send instead.
_INSTEAD = {
    "previous_response_id": "send the whole conversation in input, as clients do with store=false",
    "conversation": "send the whole conversation in input, as clients do with store=false",
    "prompt": "send instructions and input",
    "background": "leave it out, or send false",
}

# Fields of a chat request that have the same name and meaning here. The chat request checks them.
_SHARED = (
    "model",
    "stream",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "skip_special_tokens",
)

# What a chat request calls the others. Its errors are sent with the names of this API.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
_CHAT_NAME = re.compile(rf"\b({'|'.join(map(re.escape, _NAMES))})\b")


class TextFormat(Strict):
    """The form of an answer without a schema."""

    type: Literal["text", "json_object", "json_schema"]  # for the last see `SchemaFormat`

    def as_chat(self) -> dict[str, Any]:
        """The form in a chat request."""
        return {"type": self.type}


class SchemaFormat(JSONSchema):
    """A JSON schema for the answer."""

    type: Literal["json_schema"]

    def as_chat(self) -> dict[str, Any]:
        """The form in a chat request."""
        schema = self.model_dump(by_alias=True, exclude={"type"})
        return {"type": self.type, "json_schema": schema}


Format = Annotated[
    Annotated[TextFormat, Tag("TextFormat")] | Annotated[SchemaFormat, Tag("SchemaFormat")],
    chosen_by("type", {"json_schema": "SchemaFormat"}, "TextFormat"),
]


class TextConfig(Strict):
    """The form of the answer's text."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    """How much a model is to reason."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # its older name
    # The chat template decides which reasoning it repeats.
    context: Annotated[None, Fixed("auto")] = None
    mode: Annotated[None, Fixed("standard")] = None


class StreamOptions(Strict):
    """How a streamed response is sent."""

    include_obfuscation: Annotated[None, Fixed(False)] = None


Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class ResponsesRequest(Strict):
    """The body of a POST to ``/v1/responses``."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Any = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[Includable], Field(max_length=16, fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None
    # As in a chat request.
    model: str | None = None
    stream: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    seed: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    ignore_eos: Any = None
    min_tokens: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    logit_bias: Any = None
    skip_special_tokens: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    # These change nothing here: nothing is stored, and there is one kind of service.
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[Metadata, Field(max_length=MAX_METADATA)] | None = None
    client_metadata: Annotated[Any, Ignored()] = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Annotated[Any, Ignored()] = None
    service_tier: str | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None  # of hosted tools only

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_needs_a_store(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, instead in _INSTEAD.items():
            if data.get(name):
                raise APIError(
                    f"{name} is not supported, because this server stores no responses: {instead}",
                    param=name,
                    code="unsupported_parameter",
                )
        return {name: value for name, value in data.items() if name not in _INSTEAD}

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        if self.top_logprobs and not self._has_logprobs:
            raise APIError(f'top_logprobs needs include: ["{LOGPROBS}"]', param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise APIError("stream_options needs stream=true", param="stream_options")
        return self

    # -- as a chat request

    def prepare(self) -> None:
        """Compute now what takes long and is needed later. This can run in a worker thread."""
        self.chat.prepare()
        _ = self.settings

    @cached_property
    def chat(self) -> ChatRequest:
        """The request as a chat request. Raises APIError if that is refused."""
        data = {name: getattr(self, name) for name in _SHARED}
        data |= {
            "messages": self._conversation.messages,
            "max_completion_tokens": self.max_output_tokens,
            "response_format": self._format and self._format.as_chat(),
            "logprobs": self._has_logprobs,
            "top_logprobs": self.top_logprobs if self._has_logprobs else None,
            "chat_template_kwargs": self.chat_template_kwargs,
            "reasoning_effort": self.reasoning and self.reasoning.effort,
            **self._tools_in_chat,
        }
        try:
            return validated(ChatRequest, data)
        except APIError as refused:
            raise self.in_own_terms(refused) from refused

    @cached_property
    def _conversation(self) -> Conversation:
        return Conversation(self.instructions, self.input)

    @cached_property
    def offered(self) -> list[Offered]:
        """The tools that the model can call."""
        offered = offered_tools(self.tools or ())
        if not isinstance(self.tool_choice, AllowedTools):
            return offered
        allowed = {(each.type, each.name_in_chat) for each in self.tool_choice.tools}
        if missing := allowed - {(each.tool.type, each.name_in_chat) for each in offered}:
            kind, name = min(missing)
            raise APIError(
                f"tool_choice: there is no {kind} tool {name[:100]!r}",
                param="tool_choice",
                code="invalid_value",
            )
        names = {name for _, name in allowed}
        return [each for each in offered if each.name_in_chat in names]

    @property
    def _tools_in_chat(self) -> dict[str, Any]:
        choice: Any = self.tool_choice
        if isinstance(choice, AllowedTools):
            choice = choice.mode
        elif isinstance(choice, NamedTool):
            choice = {"type": choice.type, choice.type: {"name": choice.name_in_chat}}
        if not self.offered:
            # Without tools there is nothing to choose, and some clients say so.
            return {} if choice in (None, "auto", "none") else {"tool_choice": choice}
        return {
            "tools": [tool.as_chat() for tool in self.offered],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }

    @property
    def _format(self) -> TextFormat | SchemaFormat | None:
        return None if self.text is None else self.text.format

    @property
    def _has_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def in_own_terms(self, error: APIError) -> APIError:
        """An error of the chat request with the names of this API."""
        own = error.object["error"]
        param = own["param"]
        if param is None:
            return error
        place = self._place_of(param)
        message = own["message"].replace(param, place)
        return APIError(
            _CHAT_NAME.sub(lambda match: _NAMES[match[0]], message),
            param=_CHAT_NAME.sub(lambda match: _NAMES[match[0]], place),
            code=own["code"],
            status=error.status,
            type=own["type"],
            headers=error.headers,
        )

    def _place_of(self, param: str) -> str:
        """Where the field *param* of the chat request stands in this request."""
        for number, each in enumerate(self.offered):
            if param.startswith(f"tools[{number}]"):
                own = param.replace(f"tools[{number}]", each.place, 1)
                return own.replace(f".{each.tool.type}.", ".").replace(".grammar.", ".")
        return self._conversation.place_of(param)

    # -- for the response

    @property
    def streams(self) -> bool:
        """Whether the response is sent in events."""
        return bool(self.chat.stream)

    @cached_property
    def settings(self) -> str:
        """What a response repeats of its request: an object, as JSON."""
        text = self.text or TextConfig()
        reasoning = self.reasoning or Reasoning()
        choice = self.tool_choice
        settings = {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": {
                "format": (text.format or TextFormat(type="text")).model_dump(by_alias=True),
                "verbosity": text.verbosity,
            },
            "tool_choice": choice.model_dump(exclude_none=True)
            if isinstance(choice, NamedTool | AllowedTools)
            else choice or "auto",
            "tools": [
                tool.as_response()
                for tool in self.tools or ()
                if not isinstance(tool, OfflineSearch)
            ],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
        }
        return as_json(settings)
