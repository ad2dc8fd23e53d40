"""Schemas that llguidance would compile without a limit are refused before; others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

llguidance = pytest.importorskip("llguidance")
pytest.importorskip("tokenizers")

from anystreamer._text import (  # noqa: E402
    FormTooComplex,
)

from .test_form_matcher import matcher_of  # noqa: E402

Schema = dict[str, Any]

REF = "#/$defs/"


def chain(number: int, link: Callable[[Schema], Schema]) -> Schema:
    """A schema that refers to another, which refers to another."""
    links = {f"d{n}": link({"$ref": f"{REF}d{n + 1}"}) for n in range(number)}
    return {"$defs": {**links, f"d{number}": {"type": "integer"}}, "$ref": f"{REF}d0"}


def multiple(number: float) -> Schema:
    return {"type": "integer", "multipleOf": number}


def properties(*schemas: Schema) -> Schema:
    named = {f"p{n}": schema for n, schema in enumerate(schemas)}
    return {"type": "object", "properties": named, "required": [*named]}


A, B = multiple(9973), multiple(9967)  # primes
PATTERNS = [{"pattern": f".*{n}.*"} for n in range(20)]

# The first three ended the process: the stack of the thread was full. The others took seconds, and
# gigabytes, or did not end.
REFUSED: dict[str, tuple[Schema, str]] = {
    "references": (chain(3000, lambda to: to), "levels"),
    "references in items": (chain(3000, lambda to: {"type": "array", "items": to}), "levels"),
    "references in properties": (chain(3000, properties), "levels"),
    "multipleOf": (multiple(10**8 + 7), "multipleOf"),
    "multipleOf, of a fraction": ({"type": "number", "multipleOf": 1234.567}, "multipleOf"),
    "multipleOf, several": (properties(A, B, *map(multiple, range(9001, 9100, 2))), "multipleOf"),
    "multipleOf in many places": (properties(*[multiple(90_001)] * 2), "multipleOf"),
    "multipleOf in allOf": ({"allOf": [A, B]}, "multipleOf"),
    "multipleOf in anyOf": ({"anyOf": [A, B]}, "multipleOf"),
    "multipleOf beside a reference": ({"$defs": {"a": A}, "$ref": f"{REF}a", **B}, "multipleOf"),
    "multipleOf of a name": (
        {"$defs": {"a": {**A, "$id": "http://a.org/a"}}, "$ref": "http://a.org/a", **B},
        "multipleOf",
    ),
    "multipleOf in a place with a slash": (
        {"$defs": {"a/b ": A}, "$ref": f"{REF}a~1b%20", **B},
        "multipleOf",
    ),
    "multipleOf of one property": ({"allOf": [properties(A), properties(B)]}, "multipleOf"),
    "multipleOf of other properties": (
        {"allOf": [properties(A), {"additionalProperties": B}]},
        "multipleOf",
    ),
    "multipleOf of items": (
        {"allOf": [{"items": A}, {"prefixItems": [B]}], "type": "array"},
        "multipleOf",
    ),
    "patterns": ({"type": "string", "allOf": PATTERNS}, "patterns"),
    "patterns, nested": (
        {"allOf": [{"type": "string", "allOf": [{"allOf": PATTERNS[:6]}]}, *PATTERNS[6:12]]},
        "patterns",
    ),
    "patterns of options": (
        {"type": "string", "allOf": [{"anyOf": [each, {}]} for each in PATTERNS]},
        "patterns",
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {f"^{n}$": {} for n in range(1000)}},
        "patternProperties",
    ),
    "a number of rules": ({"enum": [{"a": n, "b": [n] * 20} for n in range(3000)]}, "panic"),
}


@pytest.mark.parametrize(("schema", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_schema_without_a_limit_is_refused(schema: Schema, reason: str) -> None:
    with pytest.raises(
        FormTooComplex, match=f"^response_format is too complex: .*{reason}"
    ) as told:
        matcher_of(schema)
    assert len(str(told.value)) < 600


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "string", "pattern": "^a", "maxLength": 9},
                "children": {"type": "array", "items": {"$ref": f"{REF}node"}},
                "next": {"anyOf": [{"$ref": f"{REF}node"}, {"type": "null"}]},
            },
        }
    },
    "$ref": f"{REF}node",
}
TAKEN: dict[str, Schema] = {
    "a tree": TREE,
    "references": chain(250, properties),
    "many properties": properties(*({"type": "integer"} for _ in range(4000))),
    "many patterns": properties(*({"type": "string", "pattern": f"^a{n}$"} for n in range(500))),
    "one of many patterns": {"anyOf": [{"type": "string", "pattern": f"a{n}"} for n in range(200)]},
    "some patterns for one text": {
        "type": "string",
        "allOf": [{"pattern": "a"}, {"pattern": "^.{3}$"}, {"minLength": 1}],
    },
    "multiples": properties(*map(multiple, (5, 60, 1000, 1_000_000, 0.01, 12.5))),
    "one multiple in many places": properties(*[multiple(25)] * 500),
    "a long text that is no schema": {"const": {"multipleOf": 10**8 + 7}},
    "properties with the names of keywords": properties() | {"properties": {"multipleOf": {}}},
    "long texts": {"type": "string", "minLength": 5, "maxLength": 10**6},
}


@pytest.mark.parametrize("schema", TAKEN.values(), ids=TAKEN)
def test_a_large_schema_is_taken(schema: Schema) -> None:
    assert matcher_of(schema).allowed_bits() is not None


def test_a_message_does_not_repeat_all_of_a_long_pattern() -> None:
    with pytest.raises(ValueError, match="response_format is not valid") as told:
        matcher_of({"type": "string", "pattern": "(" * 5000})
    assert len(str(told.value)) < 600
