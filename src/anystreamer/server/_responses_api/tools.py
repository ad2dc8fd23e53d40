"""The tools of OpenAI's Responses API, and the tools of a chat request that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .._custom_tools import CustomGrammar, TextFormat
from .._errors import APIError
from .._fields import Fixed, Ignored, Strict, chosen_by
from .._message_models import FunctionType, ToolType

__all__ = [
    "MAX_TOOLS",
    "AllowedTools",
    "NamedTool",
    "Offered",
    "OfflineSearch",
    "Tool",
    "name_in_chat",
    "offered_tools",
]

MAX_TOOLS = 128
MAX_NAME = 64  # of a function in a chat request


class FunctionTool(Strict):
    """A function that the model can call."""

    type: FunctionType
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Annotated[Any, Ignored()] = None
    allowed_callers: Annotated[None, Fixed(["direct"])] = None
    defer_loading: Annotated[None, Fixed(False)] = None
    is_async: Annotated[None, Fixed(False)] = Field(None, alias="async")

    def as_chat(self, name: str) -> dict[str, Any]:
        """The tool in a chat request.

        Args:
            name: of the function there.
        """
        own = self.model_dump(include={"description", "parameters", "strict"})
        return {"type": self.type, "function": {"name": name, **own}}

    def as_response(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


class GrammarFormat(CustomGrammar):
    """A text that keeps to a grammar."""

    type: Literal["grammar"]


Format = Annotated[
    Annotated[TextFormat, Tag("TextFormat")] | Annotated[GrammarFormat, Tag("GrammarFormat")],
    chosen_by("type", {"grammar": "GrammarFormat"}, "TextFormat"),
]


class CustomTool(Strict):
    """A tool whose input is a text, as Codex sends its ``apply_patch``."""

    type: Literal["custom"]
    name: str
    description: str | None = None
    format: Format | None = None
    allowed_callers: Annotated[None, Fixed(["direct"])] = None
    defer_loading: Annotated[None, Fixed(False)] = None
    is_async: Annotated[None, Fixed(False)] = Field(None, alias="async")

    def as_chat(self, name: str) -> dict[str, Any]:
        """The tool in a chat request.

        Args:
            name: of the tool there.
        """
        custom: dict[str, Any] = {"name": name, "description": self.description}
        if isinstance(self.format, GrammarFormat):
            grammar = self.format.model_dump(include={"syntax", "definition"})
            custom["format"] = {"type": "grammar", "grammar": grammar}
        return {"type": self.type, "custom": custom}

    def as_response(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        own = self.model_dump(include={"type", "name", "description"})
        known = self.format or TextFormat(type="text")
        return {**own, "format": known.model_dump()}


# A tool that a call can name.
CallableTool = Annotated[
    Annotated[FunctionTool, Tag("FunctionTool")] | Annotated[CustomTool, Tag("CustomTool")],
    chosen_by("type", {"custom": "CustomTool"}, "FunctionTool"),
]


class NamespaceTool(Strict):
    """Tools under one name, as Codex sends those of an MCP server."""

    type: Literal["namespace"]
    name: Annotated[str, Field(min_length=1)]
    # For the reader of many namespaces: a chat template has no place for it.
    description: str = ""
    tools: Annotated[list[CallableTool], Field(max_length=MAX_TOOLS, fail_fast=True)]

    def as_response(self) -> dict[str, Any]:
        """The tools as a response repeats them."""
        tools = [tool.as_response() for tool in self.tools]
        return {
            "type": self.type,
            "name": self.name,
            "description": self.description,
            "tools": tools,
        }


class OfflineSearch(Strict):
    """A search of the web that may not access the web, as Codex sends it by default.

    There is nothing that it could find here, so it is as good as no tool.
    """

    type: Literal["web_search"]
    external_web_access: Literal[False]
    filters: Annotated[Any, Ignored()] = None
    user_location: Annotated[Any, Ignored()] = None
    search_context_size: Annotated[Any, Ignored()] = None
    search_content_types: Annotated[Any, Ignored()] = None


def _tag_of(tool: Any) -> str:
    if not isinstance(tool, dict):
        return type(tool).__name__
    kind, may_search = tool.get("type"), tool.get("external_web_access")
    if kind == "web_search" and may_search is False:
        return "OfflineSearch"
    known = {"namespace": "NamespaceTool", "custom": "CustomTool"}
    return known.get(kind, "FunctionTool") if isinstance(kind, str) else "FunctionTool"


Tool = Annotated[
    Annotated[FunctionTool, Tag("FunctionTool")]
    | Annotated[CustomTool, Tag("CustomTool")]
    | Annotated[NamespaceTool, Tag("NamespaceTool")]
    | Annotated[OfflineSearch, Tag("OfflineSearch")],
    Discriminator(_tag_of),
]


class NamedTool(Strict):
    """A function or a custom tool, by its name."""

    type: ToolType
    name: str
    namespace: str | None = None

    @property
    def name_in_chat(self) -> str:
        """What the chat request calls it."""
        return name_in_chat(self.name, self.namespace)


class AllowedTools(Strict):
    """Some of the request's tools: the model can call no others."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool that is offered to the model."""

    tool: FunctionTool | CustomTool
    namespace: str | None
    place: str  #: in the request, such as ``tools[1].tools[0]``

    @property
    def name_in_chat(self) -> str:
        """What the chat request calls it."""
        return name_in_chat(self.tool.name, self.namespace)

    def as_chat(self) -> dict[str, Any]:
        """The tool in the chat request."""
        return self.tool.as_chat(self.name_in_chat)

    @property
    def as_called(self) -> dict[str, str]:
        """The fields of a call that say which tool it is."""
        namespace = {} if self.namespace is None else {"namespace": self.namespace}
        return {"name": self.tool.name, **namespace}


def name_in_chat(name: str, namespace: str | None) -> str:
    """What a chat request calls a tool: chats have no namespaces, and names must differ."""
    if namespace is None:
        return name
    joined = f"{namespace.removesuffix('__')}__{name}"
    if len(joined) <= MAX_NAME:
        return joined
    # The end of a name says the most about it. The hash tells names with the same end apart.
    digest = sha256(joined.encode()).hexdigest()[:8]
    return f"{digest}_{joined[len(digest) + 1 - MAX_NAME :]}"


def offered_tools(tools: Sequence[Any]) -> list[Offered]:
    """The tools of a request that the model can call.

    Raises:
        APIError: a chat would call two of them by the same name.
    """
    offered = []
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        if isinstance(tool, FunctionTool | CustomTool):
            offered.append(Offered(tool, None, place))
        elif isinstance(tool, NamespaceTool):
            offered += [
                Offered(function, tool.name, f"{place}.tools[{inner}]")
                for inner, function in enumerate(tool.tools)
            ]
    by_name: dict[str, Offered] = {}
    for each in offered:
        first = by_name.setdefault(each.name_in_chat, each)
        if first.as_called != each.as_called:
            raise APIError(
                f"{each.place}: the model would call it {each.name_in_chat!r}, as {first.place}",
                param=each.place,
                code="invalid_value",
            )
    return offered
