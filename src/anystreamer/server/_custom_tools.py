"""Custom tools, whose input is a text: turned into functions, and calls of these turned back.

A chat template knows only functions. A custom tool becomes one with a single parameter, a text, and
a call of it becomes the call of a custom tool again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag
from pydantic_core import PydanticCustomError

from ._errors import APIError
from ._fields import Strict, chosen_by
from ._sendable import sendable

__all__ = [
    "CustomFormat",
    "CustomGrammar",
    "TextFormat",
    "as_function",
    "call_in_chat",
    "choice_of_functions",
    "function_arguments",
    "input_of",
]

_INPUT = "input"  # the function's parameter


def _known_syntax(syntax: str) -> str:
    if syntax == "lark":
        raise PydanticCustomError(
            "lark",
            "a lark grammar cannot be enforced inside the JSON of a call: send a regex, or leave "
            "the format out and describe it",
        )
    return syntax


class CustomGrammar(Strict):
    """What the input has to keep to: a regular expression for all of it."""

    syntax: Annotated[Literal["lark", "regex"], AfterValidator(_known_syntax)]
    definition: Annotated[str, Field(min_length=1)]


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]

    @property
    def grammar(self) -> CustomGrammar | None:
        """There is none."""
        return None


class GrammarFormat(Strict):
    """A text that keeps to a grammar."""

    type: Literal["grammar"]
    grammar: CustomGrammar


CustomFormat = Annotated[
    Annotated[TextFormat, Tag("TextFormat")] | Annotated[GrammarFormat, Tag("GrammarFormat")],
    chosen_by("type", {"grammar": "GrammarFormat"}, "TextFormat"),
]


def as_function(
    name: str, description: str | None, grammar: CustomGrammar | None
) -> dict[str, Any]:
    """A custom tool as ``engine.stream_text`` takes it: as a function."""
    text: dict[str, Any] = {
        "type": "string",
        "description": "The input of the tool, as one text.",
    }
    if grammar is not None:
        text["pattern"] = f"^(?:{grammar.definition})$"
    function: dict[str, Any] = {
        "name": name,
        "description": description or "",
        "parameters": {"type": "object", "properties": {_INPUT: text}, "required": [_INPUT]},
    }
    if grammar is not None:
        function["strict"] = True
    return {"type": "function", "function": function}


def function_arguments(text: str) -> dict[str, Any]:
    """The arguments of the function, for an input."""
    return {_INPUT: text}


def input_of(arguments: str) -> str:
    """The input of a custom tool, from the arguments of the function, as JSON.

    Only a grammar enforces this form. Arguments of another form are the input themselves.
    """
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    if not isinstance(parsed, dict) or parsed.keys() != {_INPUT}:
        return arguments
    text = parsed[_INPUT]
    return sendable(text) if isinstance(text, str) else arguments


def call_in_chat(call: Mapping[str, Any], custom: Collection[str]) -> Mapping[str, Any]:
    """A function call in the shape of a chat answer; or a call of a custom tool, if it is one."""
    function = call["function"]
    name = function["name"]
    if name not in custom:
        return call
    own = {"name": name, "input": input_of(function["arguments"])}
    return {"id": call["id"], "type": "custom", "custom": own}


def choice_of_functions(choice: Any, custom: Collection[str]) -> Any:
    """A ``tool_choice`` with functions in place of these custom tools.

    Raises:
        APIError: it has the wrong type for a tool.
    """
    match choice:
        case {"type": "function", "function": {"name": str(name)}} if name in custom:
            raise _other_type(name, "custom")
        case {"type": "custom", "custom": {"name": str(name)}}:
            if name not in custom:
                raise _other_type(name, "function")
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "allowed_tools": {"tools": [*tools]} as allowed}:
            known = [choice_of_functions(each, custom) for each in tools]
            return {**choice, "allowed_tools": {**allowed, "tools": known}}
    return choice


def _other_type(name: str, kind: str) -> APIError:
    return APIError(
        f"tool_choice: {name[:100]!r} is not among the tools with this type; is it a {kind}?",
        param="tool_choice",
        code="invalid_value",
    )
