"""The body of a tool call: a name and arguments that keep to a schema, as JSON or in tags."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .argument_schemas import object_schema
from .call_shape import CallShape
from .grammar_builder import GrammarBuilder
from .tag_form import TagForm
from .tools import Tool

__all__ = ["CallBody"]

# Between two tokens of JSON, as in the answers of `response_format`.
_BETWEEN = r"/ ?|\n[ \t]{0,16}/"

# Keywords with which not only `properties` says what an object has.
_COMBINING = {
    *("$ref", "allOf", "anyOf", "dependentRequired", "dependentSchemas", "else", "if"),
    *("maxProperties", "minProperties", "not", "oneOf", "patternProperties", "propertyNames"),
    *("then", "unevaluatedProperties"),
}


class CallBody:
    """Makes the bodies of calls.

    Args:
        builder: of the grammar.
        shape: of calls.
        is_free: the arguments of tools that are not strict can be anything.
        is_single: a list of calls has one.
    """

    def __init__(
        self, builder: GrammarBuilder, shape: CallShape, *, is_free: bool, is_single: bool
    ) -> None:
        self._builder = builder
        self._shape = shape
        self._is_free = is_free
        self._is_single = is_single
        self._between = builder.terminal(_BETWEEN)
        self._arguments: dict[str, str] = {}  # by the tool's name

    def of(self, tools: Sequence[Tool]) -> str:
        """A Lark expression for a call of one of these tools."""
        if self._shape.content == "xml-inline":
            return " | ".join(map(self._in_tags, tools))
        body = self._builder.rule(" | ".join(map(self._as_json, tools)))
        if not self._shape.is_list:
            return body
        more = "" if self._is_single else f'("," {self._between} {body} {self._between})*'
        return f'"[" {self._between} {body} {self._between} {more} "]"'

    # -- JSON

    def _as_json(self, tool: Tool) -> str:
        shape, between = self._shape, self._between
        if shape.name_group and not shape.arguments_key and not shape.other_keys:
            return self._json_arguments(tool)
        pairs = [(shape.name_key, json.dumps(json.dumps(tool.name)))] if shape.name_key else []
        pairs += [(shape.arguments_key, self._json_arguments(tool))]
        # An id: nine letters or digits, which is what Mistral's templates take.
        pairs += [(key, r'/"[a-zA-Z0-9]{9}"/') for key in shape.other_keys]
        written = f' "," {between} '.join(
            f'{json.dumps(json.dumps(key))} {between} ":" {between} {value} {between}'
            for key, value in pairs
        )
        return f'"{{" {between} {written} "}}"'

    def _json_arguments(self, tool: Tool) -> str:
        if tool.name not in self._arguments:
            schema = {"type": "object"} if self._is_any(tool) else object_schema(tool)
            self._arguments[tool.name] = self._builder.schema(schema)
        return self._arguments[tool.name]

    def _is_any(self, tool: Tool) -> bool:
        return self._is_free and not tool.is_strict

    # -- tags

    def _in_tags(self, tool: Tool) -> str:
        schema = object_schema(tool)
        if unknown := sorted(schema.keys() & _COMBINING):
            raise ValueError(
                f"the parameters of {tool.name!r} have {unknown[0]!r}, which cannot be enforced "
                "for calls with a tag for each argument"
            )
        tags = TagForm(self._builder, self._shape, tool.name, schema)
        required = schema.get("required", ())
        parts = [
            f"({tags.tag(key, value)}){'' if key in required else '?'}"
            for key, value in schema.get("properties", {}).items()
        ]
        return " ".join([*parts, tags.end()])
