"""Parses the regular expressions of response templates, as far as a grammar needs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "Characters",
    "Edge",
    "Group",
    "Literal",
    "Node",
    "Options",
    "Repeat",
    "Sequence",
    "parse_pattern",
]


@dataclass(frozen=True)
class Literal:
    """A text."""

    text: str


@dataclass(frozen=True)
class Characters:
    """One character of a class, as an expression."""

    expression: str


@dataclass(frozen=True)
class Edge:
    """The beginning or the end of the answer, or a look at what follows: it has no text."""


@dataclass(frozen=True)
class Repeat:
    """A node several times."""

    node: Node
    minimum: int
    maximum: int | None  # None: any number


@dataclass(frozen=True)
class Sequence:
    """One node after the other."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Options:
    """One of several nodes."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Group:
    """A group with a name, whose text is captured."""

    name: str
    node: Node
    expression: str  # of the text inside


Node = Literal | Characters | Edge | Repeat | Sequence | Options | Group

_CLASSES = "swdSWD"
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_ANY = "(?s:.)"  # templates are compiled so that a dot is any character


def parse_pattern(pattern: str) -> Node:
    """Read a regular expression.

    Raises:
        ValueError: it has something of which no grammar can be made.
    """
    reader = _Reader(pattern)
    node = reader.options()
    if not reader.is_done:
        raise ValueError(f"it has an unbalanced ) in {pattern!r}")
    return node


class _Reader:
    """Reads an expression once, from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at >= len(self._pattern)

    def options(self) -> Node:
        nodes = [self._sequence()]
        while self._takes("|"):
            nodes.append(self._sequence())
        return nodes[0] if len(nodes) == 1 else Options(tuple(nodes))

    def _sequence(self) -> Node:
        nodes = tuple(_joined(self._pieces()))
        return nodes[0] if len(nodes) == 1 else Sequence(nodes)

    def _pieces(self) -> Iterator[Node]:
        while not self.is_done and self._pattern[self._at] not in "|)":
            yield self._repeated(self._one())

    def _one(self) -> Node:
        character = self._next()
        match character:
            case "\\":
                return self._escape()
            case ".":
                return Characters(_ANY)
            case "[":
                return self._class()
            case "(":
                return self._group()
            case "^" | "$":
                return Edge()
            case "*" | "+" | "?":
                raise self._unknown()
        return Literal(character)

    def _escape(self) -> Node:
        character = self._next()
        if character in _CLASSES:
            return Characters(f"\\{character}")
        if character in "AZz":
            return Edge()
        if character in _CONTROL:
            return Literal(_CONTROL[character])
        if character.isalnum():  # \b, a back reference and the like
            raise self._unknown()
        return Literal(character)

    def _class(self) -> Node:
        start = self._at - 1
        self._takes("^")
        self._takes("]")
        while self._next() != "]":
            if self._pattern[self._at - 1] == "\\":
                self._next()
        return Characters(self._pattern[start : self._at])

    def _group(self) -> Node:
        name = ""
        if self._takes("?"):
            if self._takes("=") or self._takes("!"):
                self._closed()
                return Edge()
            if self._takes("P<") or (not self._peeks("<=", "<!") and self._takes("<")):
                name = self._until(">")
            elif not self._takes(":"):
                raise self._unknown()
        start = self._at
        node = self._closed()
        return Group(name, node, self._pattern[start : self._at - 1]) if name else node

    def _closed(self) -> Node:
        node = self.options()
        if self._next() != ")":
            raise self._unknown()
        return node

    def _repeated(self, node: Node) -> Node:
        if self._takes("*"):
            minimum, maximum = 0, None
        elif self._takes("+"):
            minimum, maximum = 1, None
        elif self._takes("?"):
            minimum, maximum = 0, 1
        elif self._takes("{"):
            low, comma, high = self._until("}").partition(",")
            minimum = int(low or 0)
            maximum = (int(high) if high else None) if comma else minimum
        else:
            return node
        self._takes("?")  # it only says which of several matches is taken
        return Repeat(node, minimum, maximum)

    def _next(self) -> str:
        if self.is_done:
            raise self._unknown()
        self._at += 1
        return self._pattern[self._at - 1]

    def _peeks(self, *texts: str) -> bool:
        return self._pattern.startswith(texts, self._at)

    def _takes(self, text: str) -> bool:
        is_next = self._peeks(text)
        self._at += len(text) if is_next else 0
        return is_next

    def _until(self, end: str) -> str:
        start = self._at
        while not self._takes(end):
            self._next()
        return self._pattern[start : self._at - len(end)]

    def _unknown(self) -> ValueError:
        return ValueError(f"it has an expression that is not known here: {self._pattern!r}")


def _joined(nodes: Iterator[Node]) -> Iterator[Node]:
    """The nodes, with neighbouring texts as one."""
    text = ""
    for node in nodes:
        if isinstance(node, Literal):
            text += node.text
            continue
        if text:
            yield Literal(text)
            text = ""
        yield node
    if text:
        yield Literal(text)
