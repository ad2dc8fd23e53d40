"""Puts a grammar for llguidance together: texts with special tokens, expressions, JSON schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["GrammarBuilder", "escaped", "in_slashes"]

_META = frozenset(r"\.+*?()|[]{}^$#&-~/")
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class GrammarBuilder:
    """Collects the rules of one grammar.

    Args:
        special: the special tokens by their texts. llguidance takes no text for one.
        eos: the ids that end an answer.
    """

    def __init__(self, special: Mapping[str, int], eos: frozenset[int]) -> None:
        self.special = special
        self.eos = eos
        longest_first = sorted(special, key=len, reverse=True)
        self._markers = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._lines: list[str] = []
        self._names: dict[str, str] = {}  # of what was added, by its text
        self._schemas: list[dict[str, Any]] = []

    def split(self, text: str) -> list[str | int]:
        """A text as special tokens and the texts between them."""
        parts: list[str | int] = []
        at = 0
        for found in self._markers.finditer(text):
            parts += [text[at : found.start()], self.special[found[0]]]
            at = found.end()
        return [part for part in [*parts, text[at:]] if part != ""]

    def text(self, text: str) -> str:
        """A Lark expression for a text; empty for an empty text."""
        parts = self.split(text)
        return " ".join(
            f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in parts
        )

    def terminal(self, definition: str) -> str:
        """Add a terminal, unless it is there, and return its name."""
        return self._name("T", definition)

    def rule(self, definition: str, attributes: str = "") -> str:
        """Add a rule, unless it is there, and return its name."""
        return self._name("r", definition, attributes)

    def define(self, name: str, definition: str) -> None:
        """Add a rule with this name. Other rules can use the name before."""
        if f"{name}:" not in self._names:
            self._names[f"{name}:"] = name
            self._lines.append(f"{name}: {definition}")

    def schema(self, schema: Mapping[str, Any]) -> str:
        """Add the grammar of a JSON schema, and return a reference to it."""
        name = f"json_{len(self._schemas)}"
        self._schemas.append({"name": name, "json_schema": dict(schema)})
        return f"@{name}"

    def other(self, name: str, grammar: Mapping[str, Any]) -> str:
        """Add another grammar, and return a reference to it."""
        self._schemas.append({"name": name, **grammar})
        return f"@{name}"

    def grammars(self, start: str) -> list[dict[str, Any]]:
        """The whole grammar, as llguidance's list of grammars."""
        lark = "\n".join([f"start: {start}", *self._lines])
        return [{"lark_grammar": lark}, *self._schemas]

    def _name(self, prefix: str, definition: str, attributes: str = "") -> str:
        key = f"{prefix}{attributes}: {definition}"
        if key not in self._names:
            self._names[key] = name = f"{prefix}_{len(self._names)}"
            self._lines.append(f"{name}{attributes}: {definition}")
        return self._names[key]


def escaped(text: str) -> str:
    """A regular expression that matches a text."""
    return "".join(
        f"\\{character}" if character in _META else _CONTROL.get(character, character)
        for character in text
    )


def in_slashes(expression: str) -> str:
    """A regular expression as Lark writes it: between slashes, with its own slashes escaped."""
    written, is_escape = [], False
    for character in expression:
        written.append("\\/" if character == "/" and not is_escape else character)
        is_escape = character == "\\" and not is_escape
    return f"/{''.join(written)}/"
