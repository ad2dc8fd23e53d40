"""The input of OpenAI's Responses API: its items, and the chat messages that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from .._fields import Fixed, Ignored, Strict, chosen_by
from .._message_models import MAX_PARTS
from .tools import name_in_chat

__all__ = ["REASONING_PREFIX", "Conversation", "Item"]

REASONING_PREFIX = "rs"  # of the ids of reasoning

Status = Literal["in_progress", "completed", "incomplete"]


class _Part(Strict):
    prompt_cache_breakpoint: Annotated[Any, Ignored()] = None


class TextPart(_Part):
    """Text of a message, or of an earlier answer that is sent back."""

    type: Literal["input_text", "output_text"]
    text: str
    # What our own answers have, and what the official client adds to them.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Annotated[Any, Ignored()] = None

    def as_chat(self) -> dict[str, Any]:
        """The part in a chat request."""
        return {"type": "text", "text": self.text}


class RefusalPart(_Part):
    """A refusal in an earlier answer that is sent back."""

    type: Literal["refusal"]
    refusal: str

    def as_chat(self) -> dict[str, Any]:
        """The part in a chat request."""
        return {"type": "text", "text": self.refusal}


class ImagePart(_Part):
    """A picture."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    file_id: Annotated[None, Fixed()] = None

    def as_chat(self) -> dict[str, Any]:
        """The part in a chat request."""
        detail = {} if self.detail is None else {"detail": self.detail}
        return {"type": "image_url", "image_url": {"url": self.image_url, **detail}}


class AudioPart(_Part):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: dict[str, Any]

    def as_chat(self) -> dict[str, Any]:
        """The part in a chat request."""
        return {"type": "input_audio", "input_audio": self.input_audio}


def _refuse(kind: object) -> object:
    if isinstance(kind, str):
        raise PydanticCustomError("unsupported", "{kind} is not supported", {"kind": kind[:100]})
    return kind


class UnknownPart(Strict):
    """A part of another type. It is refused."""

    model_config = ConfigDict(extra="ignore")  # the error is about the type

    type: Annotated[Literal["input_text"], BeforeValidator(_refuse)]


_PARTS = {
    "input_text": "TextPart",
    "output_text": "TextPart",
    "refusal": "RefusalPart",
    "input_image": "ImagePart",
    "input_audio": "AudioPart",
}
Part = Annotated[
    Annotated[TextPart, Tag("TextPart")]
    | Annotated[RefusalPart, Tag("RefusalPart")]
    | Annotated[ImagePart, Tag("ImagePart")]
    | Annotated[AudioPart, Tag("AudioPart")]
    | Annotated[UnknownPart, Tag("UnknownPart")],
    chosen_by("type", _PARTS, "UnknownPart"),
]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
Content = str | Parts


class _Item(Strict):
    id: str | None = None
    status: Status | None = None


class MessageItem(_Item):
    """A message, also an earlier answer."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: str | None = None


class _Call(_Item):
    call_id: str
    name: str
    namespace: str | None = None
    caller: Annotated[Any, Ignored()] = None
    is_async: Annotated[None, Fixed(False)] = Field(None, alias="async")


class CallItem(_Call):
    """A tool call of an earlier answer."""

    type: Literal["function_call"]
    arguments: str
    parsed_arguments: Annotated[Any, Ignored()] = None  # added by the official client

    def as_chat(self) -> dict[str, Any]:
        """The call in a chat request."""
        function = {"name": name_in_chat(self.name, self.namespace), "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class CustomCallItem(_Call):
    """A call of a custom tool in an earlier answer."""

    type: Literal["custom_tool_call"]
    input: str

    def as_chat(self) -> dict[str, Any]:
        """The call in a chat request."""
        custom = {"name": name_in_chat(self.name, self.namespace), "input": self.input}
        return {"id": self.call_id, "type": "custom", "custom": custom}


class CallOutputItem(_Item):
    """The result of a tool call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Content
    name: str | None = None
    namespace: str | None = None
    caller: Annotated[Any, Ignored()] = None


class ReasoningText(Strict):
    """A part of a reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(_Item):
    """The reasoning of an earlier answer."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None  # from another server: this one never sends it

    @property
    def text(self) -> str:
        """All of its text; its summary, if that is all there is."""
        return "".join(part.text for part in self.content or self.summary or ())


class ReferenceItem(Strict):
    """An item of an earlier answer, by its id.

    Nothing is stored, so there is nothing to refer to. A reasoning is left out: a conversation is
    whole without it, and clients that refer to items (the AI SDK) have no other way to send it.
    """

    type: Literal["item_reference"]
    id: str

    @model_validator(mode="after")
    def _check(self) -> ReferenceItem:
        if not self.id.startswith(f"{REASONING_PREFIX}_"):
            raise PydanticCustomError(
                "item_reference",
                "item_reference is not supported, because this server stores no items: send the "
                "item itself, as clients do with store=false",
            )
        return self


class UnknownItem(Strict):
    """An item of another type. It is refused."""

    model_config = ConfigDict(extra="ignore")  # the error is about the type

    type: Annotated[Literal["message"], BeforeValidator(_refuse)]


_ITEMS = {
    "message": "MessageItem",
    "function_call": "CallItem",
    "function_call_output": "CallOutputItem",
    "custom_tool_call": "CustomCallItem",
    "custom_tool_call_output": "CallOutputItem",
    "reasoning": "ReasoningItem",
    "item_reference": "ReferenceItem",
}
Item = Annotated[
    Annotated[MessageItem, Tag("MessageItem")]
    | Annotated[CallItem, Tag("CallItem")]
    | Annotated[CustomCallItem, Tag("CustomCallItem")]
    | Annotated[CallOutputItem, Tag("CallOutputItem")]
    | Annotated[ReasoningItem, Tag("ReasoningItem")]
    | Annotated[ReferenceItem, Tag("ReferenceItem")]
    | Annotated[UnknownItem, Tag("UnknownItem")],
    chosen_by("type", _ITEMS, "UnknownItem", missing="MessageItem"),
]


class Conversation:
    """The chat messages that instructions and input become.

    The reasoning, the text and the tool calls of an earlier answer are items of their own, and one
    message of a chat.
    """

    def __init__(self, instructions: str | None, items: str | Sequence[Any]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._places: dict[str, str] = {}  # by the place in a chat request
        self._answer: dict[str, Any] | None = None  # the last message, while items can join it
        if instructions is not None:
            self._add({"role": "system", "content": instructions}, "instructions")
        if isinstance(items, str):
            self._add({"role": "user", "content": items}, "input")
            return
        for number, item in enumerate(items):
            self._add_item(item, f"input[{number}]")

    def place_of(self, param: str) -> str:
        """Where the field *param* of the chat request stands in this request."""
        place, rest = param, ""
        while place and place not in self._places:
            place, _, last = place.rpartition(".")
            rest = f".{last}{rest}"
        if place:
            return self._places[place] + rest.removeprefix(".function")
        return param.replace(".function.", ".")

    def _add_item(self, item: Any, place: str) -> None:
        match item:
            case ReasoningItem():
                self._add_reasoning(item, place)
            case CallItem() | CustomCallItem():
                answer = self._answer or self._begin_answer(place)
                calls = answer.setdefault("tool_calls", [])
                self._places[f"{self._last}.tool_calls[{len(calls)}]"] = place
                calls.append(item.as_chat())
            case MessageItem(role="assistant"):
                self._add_answer_text(item, place)
            case CallOutputItem():
                message = {
                    "role": "tool",
                    "tool_call_id": item.call_id,
                    "content": _content(item.output),
                }
                self._add(message, place)
                self._places[f"{self._last}.content"] = f"{place}.output"
            case MessageItem():
                self._add({"role": item.role, "content": _content(item.content)}, place)
            case ReferenceItem():
                pass  # to a reasoning, which is left out

    def _add_reasoning(self, item: ReasoningItem, place: str) -> None:
        answer = self._answer_to_extend(place)
        self._places[f"{self._last}.reasoning_content"] = place
        if item.text:
            texts = [answer.get("reasoning_content"), item.text]
            answer["reasoning_content"] = "\n".join(filter(None, texts))

    def _add_answer_text(self, item: MessageItem, place: str) -> None:
        answer = self._answer_to_extend(place)
        self._places[f"{self._last}.content"] = f"{place}.content"
        content = _content(item.content)
        if answer["content"]:  # text that goes on after calls
            content = [*_as_parts(answer["content"]), *_as_parts("\n"), *_as_parts(content)]
        answer["content"] = content

    def _answer_to_extend(self, place: str) -> dict[str, Any]:
        """The message that reasoning or text belongs to: after text without calls, a new one."""
        answer = self._answer
        if answer is None or (answer["content"] and "tool_calls" not in answer):
            return self._begin_answer(place)
        return answer

    def _begin_answer(self, place: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant", "content": ""}
        self._add(answer, place)
        self._answer = answer
        return answer

    def _add(self, message: dict[str, Any], place: str) -> None:
        self._answer = None
        self.messages.append(message)
        self._places[self._last] = place
        if place in ("instructions", "input"):
            self._places[f"{self._last}.content"] = place

    @property
    def _last(self) -> str:
        return f"messages[{len(self.messages) - 1}]"


def _content(content: Any) -> Any:
    return content if isinstance(content, str) else [part.as_chat() for part in content]


def _as_parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
