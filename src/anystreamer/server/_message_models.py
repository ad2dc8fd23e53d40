"""The messages, tools and response formats of a chat request, in OpenAI's format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from .._text import Regex
from ._bounded_json import MAX_CONTAINERS, MAX_DEPTH, from_bounded_json
from ._custom_tools import CustomFormat, as_function, function_arguments
from ._fields import Fixed, Ignored, Neutral, Strict, chosen_by

__all__ = [
    "MAX_CALLS",
    "MAX_PARTS",
    "CustomTool",
    "FunctionTool",
    "FunctionType",
    "JSONSchema",
    "Message",
    "ResponseFormat",
    "Tool",
    "ToolType",
]

MAX_PARTS = 1024  # of one message
MAX_CALLS = 128  # of one message


class _Part(Strict):
    cache_control: Annotated[Any, Ignored()] = None
    prompt_cache_breakpoint: Annotated[Any, Ignored()] = None


class TextPart(_Part):
    """A text in a message."""

    type: Literal["text"]
    text: str

    def as_prompt(self) -> dict[str, Any]:
        """The part in OpenAI's shape, which engines take."""
        return {"type": self.type, "text": self.text}


Content = str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]


class ImageURL(Strict):
    """Where a picture is: in a data URL, or at an address."""

    url: Annotated[str, Field(min_length=1)]
    # The processor chooses the size.
    detail: Literal["auto", "low", "high", "original"] | None = None


def _as_object(url: Any) -> Any:
    return {"url": url} if isinstance(url, str) else url


class ImagePart(_Part):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_object)]

    def as_prompt(self) -> dict[str, Any]:
        """The part in OpenAI's shape, which engines take."""
        return {"type": self.type, "image_url": {"url": self.image_url.url}}


class InputAudio(Strict):
    """A recording, in base64."""

    data: Annotated[str, Field(min_length=1)]
    format: Literal["wav", "mp3", "flac", "ogg"] | None = None  # read from the file itself


class AudioPart(_Part):
    """A recording in a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio

    def as_prompt(self) -> dict[str, Any]:
        """The part in OpenAI's shape, which engines take."""
        audio = {"data": self.input_audio.data, "format": self.input_audio.format or "wav"}
        return {"type": self.type, "input_audio": audio}


class FileURL(Strict):
    """Where a recording or a video is: in a data URL, or at an address."""

    url: Annotated[str, Field(min_length=1)]


class AudioURLPart(_Part):
    """A recording in a message, as vLLM takes it."""

    type: Literal["audio_url"]
    audio_url: Annotated[FileURL, BeforeValidator(_as_object)]

    def as_prompt(self) -> dict[str, Any]:
        """The part in vLLM's shape, which engines take."""
        return {"type": self.type, "audio_url": {"url": self.audio_url.url}}


class VideoPart(_Part):
    """A video in a message, as vLLM takes it."""

    type: Literal["video_url"]
    video_url: Annotated[FileURL, BeforeValidator(_as_object)]

    def as_prompt(self) -> dict[str, Any]:
        """The part in vLLM's shape, which engines take."""
        return {"type": self.type, "video_url": {"url": self.video_url.url}}


_PARTS = {
    "image_url": "ImagePart",
    "input_audio": "AudioPart",
    "audio_url": "AudioURLPart",
    "video_url": "VideoPart",
}
Part = Annotated[
    Annotated[TextPart, Tag("TextPart")]
    | Annotated[ImagePart, Tag("ImagePart")]
    | Annotated[AudioPart, Tag("AudioPart")]
    | Annotated[AudioURLPart, Tag("AudioURLPart")]
    | Annotated[VideoPart, Tag("VideoPart")],
    chosen_by("type", _PARTS, "TextPart"),
]
UserContent = str | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]


def _user_content(content: UserContent) -> str | list[dict[str, Any]]:
    """The text; or the parts, if some of them are not text."""
    if isinstance(content, str):
        return content
    texts = [each for each in content if isinstance(each, TextPart)]
    return _text_of(texts) if len(texts) == len(content) else [each.as_prompt() for each in content]


def _text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class TextMessage(Strict):
    """A chat message that has only text."""

    role: Literal["system", "developer"]
    content: Content
    name: Annotated[Any, Ignored()] = None
    cache_control: Annotated[Any, Ignored()] = None

    def as_prompt(self) -> dict[str, Any]:
        """The message in the form that chat templates take."""
        return {"role": "system", "content": _text_of(self.content)}


class UserMessage(Strict):
    """A chat message that can have pictures, recordings and videos."""

    role: Literal["user"]
    content: UserContent
    name: Annotated[Any, Ignored()] = None
    cache_control: Annotated[Any, Ignored()] = None

    def as_prompt(self) -> dict[str, Any]:
        """The message in the form that chat templates take."""
        return {"role": self.role, "content": _user_content(self.content)}


def _object_of(text: object) -> object:
    """Parse arguments: clients send them as JSON text, and chat templates want an object."""
    try:
        parsed = from_bounded_json(text or "{}") if isinstance(text, str) else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise PydanticCustomError(
            "no_object",
            "must be a string with a JSON object, of at most {containers} objects and arrays and "
            "{depth} levels",
            {"containers": MAX_CONTAINERS, "depth": MAX_DEPTH},
        )
    return parsed


class CalledFunction(Strict):
    """The function of a tool call."""

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object_of)]
    parsed_arguments: Annotated[Any, Ignored()] = None  # added by the official client


class ToolCall(Strict):
    """A tool call of an earlier answer, sent back."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # as in a streamed response

    def as_prompt(self) -> dict[str, Any]:
        """The call in the form that chat templates take."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


class CalledCustomTool(Strict):
    """The custom tool of a call, and its input."""

    name: str
    input: str


class CustomToolCall(Strict):
    """A call of a custom tool in an earlier answer, sent back."""

    id: str
    type: Literal["custom"]
    custom: CalledCustomTool
    index: int | None = None  # as in a streamed response

    def as_prompt(self) -> dict[str, Any]:
        """The call in the form that chat templates take."""
        arguments = function_arguments(self.custom.input)
        function = {"name": self.custom.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


Call = Annotated[
    Annotated[ToolCall, Tag("ToolCall")] | Annotated[CustomToolCall, Tag("CustomToolCall")],
    chosen_by("type", {"custom": "CustomToolCall"}, "ToolCall"),
]


class AssistantMessage(Strict):
    """An earlier answer, sent back: it can have everything that our own answers have."""

    role: Literal["assistant"]
    content: Content | None = None
    # The values that our answers have. The official client sends back all fields of its types.
    refusal: Annotated[None, Fixed(instead="send its text as content")] = None
    annotations: Annotated[None, Fixed([])] = None
    audio: Annotated[None, Fixed()] = None
    function_call: Annotated[None, Fixed(instead="send tool_calls")] = None
    parsed: Annotated[Any, Ignored()] = None  # added by the official client
    name: Annotated[Any, Ignored()] = None
    cache_control: Annotated[Any, Ignored()] = None
    # Clients send back what they got, and vLLM and others call it by the shorter name.
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[
        Annotated[list[Call], Field(max_length=MAX_CALLS, fail_fast=True)] | None, Neutral([])
    ] = None

    @model_validator(mode="after")
    def _check(self) -> AssistantMessage:
        # The stream of an answer that ended while the model reasoned had no content.
        texts = (self.content, self.reasoning_content, self.reasoning)
        if self.tool_calls is None and all(text is None for text in texts):
            raise PydanticCustomError("no_content", "needs content or tool_calls")
        return self

    def as_prompt(self) -> dict[str, Any]:
        """The message in the form that chat templates take."""
        message: dict[str, Any] = {"role": self.role, "content": _text_of(self.content or "")}
        reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if self.tool_calls is not None:
            message["tool_calls"] = [call.as_prompt() for call in self.tool_calls]
        return message


class ToolMessage(Strict):
    """The result of a tool call, which can be a picture: vLLM and the Responses API take it too."""

    role: Literal["tool"]
    content: UserContent
    tool_call_id: str
    name: str | None = None  # of the function
    cache_control: Annotated[Any, Ignored()] = None

    def as_prompt(self) -> dict[str, Any]:
        """The message in the form that chat templates take."""
        content = _user_content(self.content)
        name = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "tool_call_id": self.tool_call_id, "content": content, **name}


_MESSAGES = {"assistant": "AssistantMessage", "tool": "ToolMessage", "user": "UserMessage"}
Message = Annotated[
    Annotated[TextMessage, Tag("TextMessage")]
    | Annotated[UserMessage, Tag("UserMessage")]
    | Annotated[AssistantMessage, Tag("AssistantMessage")]
    | Annotated[ToolMessage, Tag("ToolMessage")],
    chosen_by("role", _MESSAGES, "TextMessage"),
]


class JSONSchema(Strict):
    """A JSON schema with what clients send besides it. The answer always matches it."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form that the answer keeps to: OpenAI's fields, and those of other servers.

    ``value`` is of text-generation-inference: Hugging Face's client sends it, also for a form in
    OpenAI's fields. ``schema`` is what clients of llama.cpp, SGLang, Together and Fireworks send.
    """

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JSONSchema | None = None
    bare_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    value: dict[str, Any] | str | None = None  # a schema, or an expression

    @model_validator(mode="after")
    def _check(self) -> ResponseFormat:
        if self.bare_schema is not None:
            alone = self.json_schema is None and self.value is None
            if not (alone and self.type in ("json_object", "json_schema")):
                raise PydanticCustomError(
                    "schema",
                    "schema is allowed with the types json_object and json_schema only, and alone",
                )
            return self
        if (self.json_schema is None) is (self.type == "json_schema"):
            raise PydanticCustomError(
                "json_schema",
                "json_schema is required with the type json_schema, and not allowed with others",
            )
        kinds = {"json": (dict,), "json_object": (dict, type(None)), "regex": (str,)}
        if not isinstance(self.value, kinds.get(self.type, type(None))):
            raise PydanticCustomError(
                "value",
                "value must be a JSON schema with the types json and json_object, and a regular "
                "expression with the type regex; it is not allowed with others",
            )
        return self

    @property
    def form(self) -> str | dict[str, Any] | Regex | None:
        """The argument for ``engine.stream_text``; None for any text."""
        if self.json_schema is not None:
            return self.json_schema.json_schema
        if self.bare_schema is not None:
            return self.bare_schema
        if self.value is not None:
            return Regex(self.value) if isinstance(self.value, str) else self.value
        return "json" if self.type == "json_object" else None


class Function(Strict):
    """A function that a model can call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Annotated[Any, Ignored()] = None  # litellm has it at either place
    defer_loading: Annotated[None, Fixed(False)] = None


def _tool_type(kind: object) -> object:
    if isinstance(kind, str) and kind not in ("function", "custom"):
        raise PydanticCustomError(
            "no_function",
            "{kind} is not supported: the tools of this server are of the types function and "
            "custom",
            {"kind": kind[:100]},
        )
    return kind


FunctionType = Annotated[Literal["function"], BeforeValidator(_tool_type)]
ToolType = Annotated[Literal["function", "custom"], BeforeValidator(_tool_type)]


class FunctionTool(Strict):
    """A function that a model can call."""

    type: FunctionType = "function"
    function: Function
    cache_control: Annotated[Any, Ignored()] = None
    defer_loading: Annotated[None, Fixed(False)] = None

    def as_argument(self) -> dict[str, Any]:
        """The tool as ``engine.stream_text`` takes it."""
        function: dict[str, Any] = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.function.parameters or {"type": "object", "properties": {}},
        }
        if self.function.strict:
            function["strict"] = True
        return {"type": "function", "function": function}


class Custom(Strict):
    """A tool whose input is a text."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    format: CustomFormat | None = None


class CustomTool(Strict):
    """A custom tool that a model can call."""

    type: Literal["custom"]
    custom: Custom
    cache_control: Annotated[Any, Ignored()] = None

    def as_argument(self) -> dict[str, Any]:
        """The tool as ``engine.stream_text`` takes it."""
        custom = self.custom
        grammar = None if custom.format is None else custom.format.grammar
        return as_function(custom.name, custom.description, grammar)


Tool = Annotated[
    Annotated[FunctionTool, Tag("FunctionTool")] | Annotated[CustomTool, Tag("CustomTool")],
    chosen_by("type", {"custom": "CustomTool"}, "FunctionTool"),
]
