"""`tools=`, `tool_choice=` and `parallel_tool_calls=`: which calls an answer can have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Tool", "ToolChoice", "ToolUse", "validate_tools"]

#: ``"auto"``, ``"none"``, ``"required"``, or OpenAI's form of one function.
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, Any]

_MODES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model can call."""

    name: str
    parameters: dict[str, Any] = field(repr=False)  #: a JSON schema of objects
    is_strict: bool  #: whether arguments keep to it where the model chooses to call


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, checked, and how they can be called."""

    #: as they go into the prompt: OpenAI's form, without ``strict``
    described: list[dict[str, Any]]
    strict: frozenset[str]  #: the names of those that were strict
    tools: tuple[Tool, ...]  #: that can be called
    mode: str  #: "auto", "none" or "required"
    is_single: bool  #: whether an answer has one call at the most
    choice: Any  #: as it was given
    parallel: bool  #: as it was given

    @property
    def argument(self) -> str:
        """The argument that asks for the form of the answer, for messages."""
        return "tools" if self.mode == "auto" else "tool_choice"

    @property
    def is_enforced(self) -> bool:
        """Whether the answer has to be kept to something."""
        if self.mode == "auto":
            return self.is_single or any(tool.is_strict for tool in self.tools)
        return True


def validate_tools(tools: Any, choice: Any, parallel: Any) -> ToolUse | None:
    """Return how tools are used; None without tools.

    Whether their schemas can be kept to is found out when they are compiled.

    Raises:
        TypeError, ValueError: for what describes no tools, or no choice among them.
    """
    if not isinstance(parallel, bool):
        raise TypeError(f"parallel_tool_calls must be a bool, not {parallel!r:.80}")
    if tools is not None and (isinstance(tools, str | Mapping) or not isinstance(tools, Sequence)):
        raise TypeError(f"tools must be a list of tools, not {tools!r:.80}")
    mode, chosen = _read_choice(choice)
    if not tools:
        if mode == "required":
            raise ValueError(f"tool_choice={choice!r:.80} needs tools")
        return None
    described, all_tools = [], dict[str, Tool]()
    for position, each in enumerate(tools):
        description, tool = _read_tool(f"tools[{position}]", each)
        if tool.name in all_tools:
            raise ValueError(f"tools[{position}]: there is another tool of the name {tool.name!r}")
        all_tools[tool.name] = tool
        described.append(description)
    for name in chosen or ():
        if name not in all_tools:
            raise ValueError(f"tool_choice: there is no tool of the name {name!r:.80}")
    return ToolUse(
        described,
        frozenset(name for name, tool in all_tools.items() if tool.is_strict),
        tuple(tool for name, tool in all_tools.items() if chosen is None or name in chosen),
        mode,
        not parallel or (mode == "required" and chosen is not None and len(chosen) == 1),
        choice,
        parallel,
    )


def _read_choice(choice: Any) -> tuple[str, list[str] | None]:
    """The mode, and the names of the tools that can be called; None for all of them."""
    if choice is None:
        return "auto", None
    if choice in _MODES and isinstance(choice, str):
        return choice, None
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            return "required", [name]
        case {"type": "function", "name": str(name)}:  # as in OpenAI's Responses API
            return "required", [name]
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": [_, *_] as allowed},
        }:
            if mode in ("auto", "required"):
                return mode, [_read_name("tool_choice", each) for each in allowed]
    raise ValueError(
        "tool_choice must be 'auto', 'none', 'required' or "
        "{'type': 'function', 'function': {'name': ...}}, "
        f"not {choice!r:.80}"
    )


def _read_name(place: str, tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{place} must be {{'type': 'function', 'function': {{'name': ..., ...}}}}, "
            f"not {tool!r:.80}"
        )
    return name


def _read_tool(place: str, tool: Any) -> tuple[dict[str, Any], Tool]:
    name = _read_name(place, tool)
    if tool.get("type", "function") != "function":
        raise ValueError(f"{place}: its type must be 'function', not {tool['type']!r:.80}")
    try:  # a copy: the caller's can change later
        copied = json.loads(json.dumps(dict(tool), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"{place} cannot be written as JSON: {exc}") from None
    function = copied.get("function", copied)
    strict = function.pop("strict", None)
    if not isinstance(strict, bool | None):
        raise ValueError(f"{place}: strict must be a bool, not {strict!r:.80}")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise ValueError(f"{place}: parameters must be a JSON schema, not {parameters!r:.80}")
    return copied, Tool(name, parameters, bool(strict))
