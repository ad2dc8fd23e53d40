"""The JSON schemas of tools' arguments, in the forms that a grammar and a parser need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from .response_format import closed, with_whitespace
from .tools import Tool, ToolUse

__all__ = ["list_of", "object_schema", "parser_tools", "resolved", "target_of", "types_of"]

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_COMBINE = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "patternProperties")


def object_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, for a grammar: an object with the named properties alone.

    Raises:
        ValueError: it describes something else.
    """
    schema = dict(tool.parameters)
    types = schema.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise ValueError(f"the parameters of {tool.name!r} must be of the type object")
    schema["type"] = "object"
    # Two schemas that are closed can have no object together.
    if not any(map(_combines, _objects_in(schema))):
        schema = closed(schema)
    return with_whitespace(schema)


def _objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, list):
        for each in schema:
            yield from _objects_in(each)
    elif isinstance(schema, dict):
        yield schema
        for each in schema.values():
            yield from _objects_in(each)


def _combines(schema: dict[str, Any]) -> bool:
    """Whether properties come from more than one place."""
    several = schema.get("allOf")
    if isinstance(several, list) and len(several) > 1:
        return True
    return "properties" in schema and any(key in schema for key in _COMBINE)


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema without a reference at its top. A reference that leads nowhere stays."""
    for _ in range(16):  # it can lead to itself
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        found = target_of(reference, root)
        if not isinstance(found, Mapping):
            return schema
        schema = {**found, **{key: each for key, each in schema.items() if key != "$ref"}}
    return schema


def target_of(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference leads to by its place in the schema; None for nothing."""
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key[:9]) < len(found):
            found = found[int(key[:9])]
        else:
            found = found.get(key) if isinstance(found, Mapping) else None
    return found


def types_of(schema: Any, root: Mapping[str, Any], depth: int = 8) -> list[str]:
    """The types that a value can have. A schema that says nothing sensible has all."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or not depth:
        return list(_TYPES)
    declared = schema.get("type")
    types = {each for each in _TYPES if each == declared or each in list_of(declared)}
    types = types or set(_TYPES)
    if "number" in types:
        types.add("integer")
    if "const" in schema or list_of(schema.get("enum")):
        values = list_of(schema.get("enum")) or [schema["const"]]
        types &= {name for value in values for name in _types_of_value(value)}
    for name in ("anyOf", "oneOf"):
        if options := list_of(schema.get(name)):
            types &= {each for option in options for each in types_of(option, root, depth - 1)}
    for part in list_of(schema.get("allOf")):
        types &= set(types_of(part, root, depth - 1))
    return [each for each in _TYPES if each in types]


def list_of(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one: schemas can have anything anywhere."""
    return value if isinstance(value, list) else []


def _types_of_value(value: Any) -> tuple[str, ...]:
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case int():
            return ("integer", "number")
        case float():
            return ("number",)
        case str():
            return ("string",)
        case list():
            return ("array",)
    return ("object",)


def parser_tools(use: ToolUse) -> list[dict[str, Any]]:
    """The tools for transformers' parser, which reads only types that a property names itself.

    By these types, the parser makes numbers and objects of arguments that are written as text.
    """
    described = []
    for tool in use.tools:
        properties = tool.parameters.get("properties")
        typed = {}
        for key, schema in properties.items() if isinstance(properties, dict) else ():
            types = types_of(schema, tool.parameters) if isinstance(schema, dict) else []
            # Of a value that can be anything, a text stays a text.
            typed[key] = {"type": types} if len(types) < len(_TYPES) else {}
        parameters = {"type": "object", "properties": typed}
        described.append({"name": tool.name, "parameters": parameters})
    return described
