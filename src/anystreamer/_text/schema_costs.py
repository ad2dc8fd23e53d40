"""Refuses JSON schemas that would cost llguidance unlimited time or memory, or crash the process.

It has limits for most of what a schema can cost, but not for these: it follows references on the
stack of its thread, which ends the process when it is full; makes an automaton with a state for
each remainder of `multipleOf`, and their product where several apply to one value; and intersects
patterns that apply to one text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from .argument_schemas import list_of, target_of

__all__ = ["check_cost"]

# Each level takes up to 9 KiB of a stack, which has 8 MiB.
MAX_LEVELS = 600
# In all. 100,000 states take 0.2 s and 20 MB; 1,000,000 take 5 s and 220 MB.
MAX_REMAINDERS = 100_000
# For one text. With 8 it takes a millisecond, with 16 two seconds.
MAX_PATTERNS = 8
# Each of one object is compared with all others: 300 take a second.
MAX_PATTERN_PROPERTIES = 100
# Of this module itself.
MAX_STEPS = 200_000

_ALL = ("allOf",)
_ANY = ("anyOf", "oneOf")
_LITERAL = frozenset({"const", "default", "enum", "examples", "x-guidance"})
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
_DEFINITIONS = frozenset({"$defs", "definitions"})
_NAMES = frozenset({"$id", "$anchor", "$dynamicAnchor"})

Schema = Mapping[str, Any]


def check_cost(schema: Schema) -> None:
    """Refuse a schema that must not be compiled.

    Raises:
        ValueError: it is too complex.
    """
    try:
        _Costs(schema).check()
    except RecursionError:
        raise _levels_error() from None


def _levels_error() -> ValueError:
    return ValueError(f"with its references it has more than {MAX_LEVELS} levels")


class _Costs:
    """Walks a schema with its references: through groups of schemas that are for one value."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._steps = 0
        self._named: list[Any] | None = None  # those that a reference can name without its place
        self._remainders = 0  # of all groups

    def check(self) -> None:
        self._check_levels()
        seen: set[frozenset[int]] = set()
        waiting: list[Sequence[Any]] = [(self._root,)]
        while waiting:
            group = waiting.pop()
            key = frozenset(map(id, group))
            if key not in seen:
                seen.add(key)
                parts = list(self._parts(group))
                self._check_patterns(group)
                self._check_remainders(parts)
                waiting += _values(parts)

    def _count(self, number: int = 1) -> None:
        self._steps += number
        if self._steps > MAX_STEPS:
            raise ValueError("its parts can be combined in too many ways")

    # -- references

    def _targets(self, schema: Schema) -> list[Any]:
        """What a schema refers to."""
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return []
        target = self._root if reference == "#" else target_of(reference, self._root)
        if target is not None:
            return [target]
        if self._named is None:
            self._named = [each for each in _dicts(self._root) if each.keys() & _NAMES]
        return self._named

    def _parts(self, group: Iterable[Any]) -> Iterator[Schema]:
        """The schemas that apply to a value: these, and what they refer to and combine."""
        seen: set[int] = set()
        waiting = list(group)
        while waiting:
            schema = waiting.pop()
            if not isinstance(schema, Mapping) or id(schema) in seen:
                continue
            self._count()
            seen.add(id(schema))
            yield schema
            waiting += self._targets(schema)
            waiting += [each for name in (*_ALL, *_ANY) for each in list_of(schema.get(name))]

    # -- limits

    def _check_levels(self) -> None:
        """Add up the levels of all schemas that are referred to: no chain of them has more."""
        levels, counted = 0, set[int]()
        waiting: list[Any] = [self._root]
        while waiting:
            schema = waiting.pop()
            if id(schema) in counted:
                continue
            counted.add(id(schema))
            levels += _levels(schema)
            if levels > MAX_LEVELS:
                raise _levels_error()
            for each in _dicts(schema):
                self._count()
                if "$ref" in each:
                    waiting += self._targets(each)

    def _check_patterns(self, group: Iterable[Any]) -> None:
        if sum(self._patterns(each, frozenset()) for each in group) > MAX_PATTERNS:
            raise ValueError(f"it has more than {MAX_PATTERNS} patterns for one text")

    def _patterns(self, schema: Any, above: frozenset[int]) -> int:
        """How many patterns a text has to match at most."""
        if not isinstance(schema, Mapping) or id(schema) in above:
            return 0
        self._count()
        above |= {id(schema)}
        own = len({"pattern", "format"} & schema.keys())
        combined = (each for name in _ALL for each in list_of(schema.get(name)))
        together = [*self._targets(schema), *combined]
        own += sum(self._patterns(each, above) for each in together)
        for name in _ANY:
            options = [self._patterns(each, above) for each in list_of(schema.get(name))]
            own += max(options, default=0)
        return own

    def _check_remainders(self, parts: Iterable[Schema]) -> None:
        multiples = [each["multipleOf"] for each in parts if "multipleOf" in each]
        self._remainders += math.lcm(*map(_remainders, multiples)) if multiples else 0
        if self._remainders > MAX_REMAINDERS:
            raise ValueError("its values of multipleOf have too many digits together")


def _values(parts: Sequence[Schema]) -> Iterator[Sequence[Any]]:
    """The schemas that apply to one inner value: for each property and item, of all parts."""
    properties: dict[str, list[Any]] = {}
    items: dict[int, list[Any]] = {}
    others: dict[str, list[Any]] = {"property": [], "item": []}
    for schema in parts:
        for name, value in _mapping(schema.get("properties")).items():
            properties.setdefault(name, []).append(value)
        for number, value in enumerate(list_of(schema.get("prefixItems"))):
            items.setdefault(number, []).append(value)
        patterns = _mapping(schema.get("patternProperties"))
        if len(patterns) > MAX_PATTERN_PROPERTIES:
            raise ValueError(f"it has more than {MAX_PATTERN_PROPERTIES} patternProperties")
        others["property"] += patterns.values()
        for kind, name in _OTHERS:
            if isinstance(schema.get(name), Mapping):
                others[kind].append(schema[name])
        items_of = schema.get("items")
        others["item"] += items_of if isinstance(items_of, list) else []
    for kind, known in (("property", properties), ("item", items)):
        yield others[kind]
        for group in known.values():
            yield [*group, *others[kind]]


_OTHERS = (
    ("property", "additionalProperties"),
    ("property", "unevaluatedProperties"),
    ("property", "propertyNames"),
    ("item", "items"),
    ("item", "additionalItems"),
    ("item", "unevaluatedItems"),
    ("item", "contains"),
)


def _levels(schema: Any, is_map: bool = False) -> int:
    """How deep schemas are in a schema, without its definitions."""
    if isinstance(schema, list):
        return max(map(_levels, schema), default=0)
    if not isinstance(schema, Mapping):
        return 0
    left_out = frozenset() if is_map else _LITERAL | _DEFINITIONS
    inner = (
        _levels(value, is_map=not is_map and name in _MAPS)
        for name, value in schema.items()
        if name not in left_out
    )
    return max(inner, default=0) + (not is_map)


def _dicts(value: Any) -> Iterator[Schema]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _remainders(multiple: Any) -> int:
    """How many states llguidance needs for a multiple: its digits, without zeros at their end."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not multiple:
        return 1
    digits = Decimal(repr(multiple)).normalize().as_tuple().digits
    return int("".join(map(str, digits)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
