"""Arguments of a tool call that have a tag each, as in Qwen3-Coder's XML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .argument_schemas import resolved, types_of
from .call_shape import CallShape, flat_nodes
from .grammar_builder import GrammarBuilder, escaped, in_slashes
from .marker_grammar import render
from .marker_patterns import Group, Literal, Node, parse_pattern

__all__ = ["TagForm"]

# The parser takes white space around a value off.
_NO_SPACE_AROUND = r"~/[\s\x1c-\x1f](?s:.*)/ & ~/(?s:.*)[\s\x1c-\x1f]/"

# What a parser of JSON does not take for a text. Python's also takes NaN and the infinities.
_JSON_VALUE = r'true|false|null|NaN|-?Infinity|-?[0-9.eE+-]+|["\[{](?s:.*)'

# How many alternatives the schemas of a tool can have, and how deep they can be nested: references
# can lead to themselves.
_MAX_OPTIONS = 1000
_MAX_NESTING = 16

# What a schema can say of a text, or say without a meaning for it.
_OF_TEXTS = {"const", "enum", "maxLength", "minLength", "pattern", "type"}
_ANNOTATIONS = {
    *("$comment", "$defs", "$schema", "default", "definitions", "deprecated", "description"),
    *("examples", "nullable", "readOnly", "title", "writeOnly", "x-guidance"),
}


class TagForm:
    """Makes the tags of one tool's arguments.

    Args:
        builder: of the grammar.
        shape: of calls.
        name: of the tool, for messages.
        root: the schema of its arguments.

    Raises:
        ValueError: the response template has tags that cannot be written.
    """

    def __init__(
        self, builder: GrammarBuilder, shape: CallShape, name: str, root: Mapping[str, Any]
    ) -> None:
        self._builder = builder
        self._name = name
        self._root = root
        self._options = 0  # seen so far
        self._space = builder.terminal(r"/[ \t\r\n]{0,4}/")
        args = shape.content_args
        parser = args.get("value_parser") or {"name": "text"}
        if parser["name"] not in ("json", "text"):
            raise ValueError(f"its values are {parser['name']!r}")
        self._is_json = parser["name"] == "json"
        nodes = tuple(flat_nodes(parse_pattern(args["tag_pattern"])))
        places = {node.name: place for place, node in enumerate(nodes) if isinstance(node, Group)}
        if places.keys() != {"key", "value"} or places["key"] > places["value"]:
            raise ValueError("its tags have no key before a value")
        self._before = nodes[: places["value"]]
        self._key = nodes[places["key"]]
        self._after = nodes[places["value"] + 1 :]
        stop = next((each.text for each in self._after if isinstance(each, Literal)), "")
        if not stop:
            raise ValueError("no text closes its tags")
        if any(isinstance(part, int) for part in builder.split(stop)):
            raise ValueError("a special token closes its tags")
        self._no_stop = f"~/(?s:.*){escaped(stop)}(?s:.*)/"
        self._end = _unclosed(shape)

    def tag(self, key: str, schema: Any) -> str:
        """A Lark expression for an argument."""
        assert isinstance(self._key, Group)
        if not re.fullmatch(self._key.expression, key, re.DOTALL):
            raise ValueError(
                f"{self._name!r} has the parameter {key!r}, a name that the response template "
                "does not take"
            )
        opened = render(self._builder, self._before, {"key": key})
        values = " | ".join(dict.fromkeys(self._values(key, schema)))
        return f"{self._space} {opened} ({values})"

    def end(self) -> str:
        """A Lark expression for what can follow the last argument.

        These are the closing tags of what opened the call, if the template's own close has none.
        """
        closing = " ".join(f"{self._space} {self._builder.text(tag)}" for tag in self._end)
        return f"({closing})?" if closing else self._space

    def _values(self, key: str, schema: Any, nested: int = 0) -> Iterator[str]:
        """The texts that a value can be, each with what closes its tag."""
        self._options += bool(nested)
        if self._options > _MAX_OPTIONS or nested > _MAX_NESTING:
            raise ValueError(f"the parameter {key!r} of {self._name!r} has too many alternatives")
        schema = resolved(schema, self._root)
        known: dict[str, Any] = schema if isinstance(schema, dict) else {}
        for name in ("anyOf", "oneOf"):
            if options := known.get(name):
                others = {each: known[each] for each in known if each != name}
                for option in options:
                    merged = {**others, **option} if isinstance(option, dict) else others
                    yield from self._values(key, merged, nested + 1)
                return
        types = types_of(schema, self._root)
        if "string" in types:
            yield self._text(key, known)
        if self._is_json or types != ["string"]:
            yield self._json(schema, types)

    def _json(self, schema: Any, types: list[str]) -> str:
        """A value as JSON. If texts are written without quotes, it is not a text."""
        definitions = {
            key: self._root[key] for key in ("$defs", "definitions") if key in self._root
        }
        known = schema if isinstance(schema, dict) else {}
        others = types if self._is_json else [each for each in types if each != "string"]
        if "enum" in known and not self._is_json:
            known = {**known, "enum": [each for each in known["enum"] if not isinstance(each, str)]}
        value = self._builder.schema({**definitions, **known, "type": others})
        return f"{value} {render(self._builder, self._after, {})}"

    def _text(self, key: str, schema: Mapping[str, Any]) -> str:
        """A value that is the text itself."""
        if unknown := sorted(schema.keys() - _OF_TEXTS - _ANNOTATIONS - _OF_OTHERS):
            raise ValueError(
                f"the parameter {key!r} of {self._name!r} has {unknown[0]!r}, which cannot be "
                "enforced for calls with a tag for each argument"
            )
        parts = [_NO_SPACE_AROUND, self._no_stop]
        parts += [f"~/({_JSON_VALUE})/"] if self._is_json else []
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if choices is not None:
            texts = [escaped(each) for each in choices if isinstance(each, str)]
            parts.insert(0, f"/({'|'.join(texts)})/")
        else:
            parts.insert(0, "/(?s:.*)/")
        if "pattern" in schema:
            parts.append(in_slashes(_searched(schema["pattern"])))
        if "minLength" in schema or "maxLength" in schema:
            limits = f"{schema.get('minLength', 0)},{schema.get('maxLength', '')}"
            parts.append(f"/(?s:.){{{limits}}}/")
        text = self._builder.terminal(" & ".join(parts))
        # One lexeme, which ends where its tag is first closed: after a text any other would go on.
        return self._builder.rule(f"{text} {render(self._builder, self._after, {})}", "[lazy]")


# Keywords that say nothing about a text.
_OF_OTHERS = {
    *("additionalProperties", "contains", "exclusiveMaximum", "exclusiveMinimum", "items"),
    *("maxContains", "maximum", "maxItems", "minContains", "minimum", "minItems", "multipleOf"),
    *("prefixItems", "properties", "required", "uniqueItems"),
}


def _searched(pattern: str) -> str:
    """An expression for a whole text in which a pattern is found."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[begins : len(pattern) - ends]
    return f"{'' if begins else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"


def _unclosed(shape: CallShape) -> list[str]:
    """The tags that close what opens a call, if the template's own close does not."""
    closes = " ".join(each.text for each in _literals(n for nodes in shape.closes for n in nodes))
    tags: list[str] = []
    for opening in shape.openings:
        opened = opening.lead + "".join(each.text for each in _literals(opening.rest))
        tags = [f"</{tag}>" for tag in re.findall(r"<(\w+)", opened)]
    return [tag for tag in reversed(tags) if tag not in closes]


def _literals(nodes: Iterable[Node]) -> Iterator[Literal]:
    return (node for node in flat_nodes(*nodes) if isinstance(node, Literal))
