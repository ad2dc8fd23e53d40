"""The messages and tools of a chat request, as OpenAI's API has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def _text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class TextMessage(_Strict):
    """A message of a chat that is nothing but text."""

    role: Literal["system", "developer", "user"]
    content: Content

    def as_prompt(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": _text_of(self.content)}


def _object_of(text: object) -> object:
    """What JSON text says: clients send arguments so, and templates want them so."""
    try:
        said = from_json(text or "{}", allow_inf_nan=False) if isinstance(text, str) else None
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise PydanticCustomError("no_object", "must be the text of a JSON object")
    return said


class CalledFunction(_Strict):
    """The function of a tool call."""

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object_of)]
    parsed_arguments: Any = None  # what the client itself makes of them


class ToolCall(_Strict):
    """A tool call of an answer before, sent back."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None  # of the chunk that it came in

    def as_prompt(self) -> dict[str, Any]:
        """The call as chat templates take it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


class AssistantMessage(_Strict):
    """An answer before, sent back: it may have all that our own answers have."""

    role: Literal["assistant"]
    content: Content | None = None
    # What our answers have of these. The official client sends back all that its types have.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None  # what the client itself makes of it
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> AssistantMessage:
        if self.content is None and self.tool_calls is None:
            raise PydanticCustomError("no_content", "content is missing, and so are tool_calls")
        return self

    def as_prompt(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        message: dict[str, Any] = {"role": self.role, "content": _text_of(self.content or "")}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls is not None:
            message["tool_calls"] = [call.as_prompt() for call in self.tool_calls]
        return message


class ToolMessage(_Strict):
    """What a tool answered to a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str

    def as_prompt(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        text = _text_of(self.content)
        return {"role": self.role, "tool_call_id": self.tool_call_id, "content": text}


def _kind_of(message: Any) -> str:
    kinds = {"assistant": "AssistantMessage", "tool": "ToolMessage"}
    role = message.get("role") if isinstance(message, dict) else None
    return kinds.get(role, "TextMessage") if isinstance(role, str) else "TextMessage"


Message = Annotated[
    Annotated[TextMessage, Tag("TextMessage")]
    | Annotated[AssistantMessage, Tag("AssistantMessage")]
    | Annotated[ToolMessage, Tag("ToolMessage")],
    Discriminator(_kind_of),
]


class Function(_Strict):
    """A function that a model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None  # nothing makes a model keep to the schema


class Tool(_Strict):
    """A tool that a model may call."""

    type: Literal["function"]
    function: Function

    def as_prompt(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        return {
            "type": "function",
            "function": {
                "name": self.function.name,
                "description": self.function.description or "",
                "parameters": self.function.parameters or {"type": "object", "properties": {}},
            },
        }
