"""The markers that open and close a field, as a grammar in Lark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .call_shape import flat_nodes
from .grammar_builder import GrammarBuilder, escaped, in_slashes
from .marker_patterns import Characters, Edge, Group, Literal, Node, Options, Repeat, Sequence

__all__ = ["render"]

_SPACES = ("\\s", " ")
# How often something is written that can be repeated without a limit: small models would not stop.
_MAX_SPACES = 4
_MAX_REPEATS = 16

# Harmony's, between a name and the message, where its template takes any text.
_CONSTRAIN = "<|constrain|>"


def render(builder: GrammarBuilder, nodes: Iterable[Node], names: Mapping[str, str]) -> str:
    """A Lark expression for nodes, with *names* in place of groups. Empty if they have no text."""
    return _Renderer(builder, names).sequence(nodes)


class _Renderer:
    def __init__(self, builder: GrammarBuilder, names: Mapping[str, str]) -> None:
        self._builder = builder
        self._names = names

    def sequence(self, nodes: Iterable[Node]) -> str:
        """Neighbours without special tokens become one expression, which is one lexeme."""
        parts: list[str] = []
        expression = ""
        for node in flat_nodes(*nodes):
            plain = self._expression(node)
            if plain is not None:
                expression += plain
                continue
            parts += [in_slashes(expression)] * bool(expression) + [self._lark(node)]
            expression = ""
        parts += [in_slashes(expression)] * bool(expression)
        return " ".join(part for part in parts if part)

    def _expression(self, node: Node) -> str | None:
        """An expression for a node; None if it has special tokens."""
        match node:
            case Literal(text=text):
                has_token = any(isinstance(part, int) for part in self._builder.split(text))
                return None if has_token else escaped(text)
            case Characters(expression=expression):
                return expression
            case Group(name=name, node=inner):
                own = self._names.get(name)
                return self._expression(inner) if own is None else escaped(own)
            case Repeat():
                return self._repeated(node)
            case Sequence(nodes=inner):
                return _joined(map(self._expression, inner), "")
            case Options(nodes=inner):
                joined = _joined(map(self._expression, inner), "|")
                return None if joined is None else f"(?:{joined})"
            case Edge():
                return ""

    def _repeated(self, node: Repeat) -> str | None:
        if isinstance(node.node, Characters) and (node.minimum, node.maximum) == (0, None):
            # What a pattern leaves open is left out, except for spaces.
            if node.node.expression in _SPACES:
                return f"[ \\t\\r\\n]{{0,{_MAX_SPACES}}}"
            return None if _CONSTRAIN in self._builder.special else ""
        each = self._expression(node.node)
        maximum = node.minimum + _MAX_REPEATS if node.maximum is None else node.maximum
        return None if each is None else f"(?:{each}){{{node.minimum},{maximum}}}"

    def _lark(self, node: Node) -> str:
        """A Lark expression for a node that has special tokens."""
        match node:
            case Literal(text=text):
                return self._builder.text(text)
            case Repeat(node=Characters()):
                return f'(/ ?/ {self._builder.text(_CONSTRAIN)} "json")?'
            case Repeat(node=inner, minimum=minimum, maximum=maximum):
                highest = minimum + _MAX_REPEATS if maximum is None else maximum
                return f"({self.sequence((inner,))}){{{minimum},{highest}}}"
            case Group(node=inner):
                return f"({self.sequence((inner,))})"
            case Options(nodes=inner):
                return f"({' | '.join(self.sequence((each,)) for each in inner)})"
            case Sequence(nodes=inner):
                return self.sequence(inner)
            case Characters() | Edge():
                return ""


def _joined(parts: Iterable[str | None], between: str) -> str | None:
    known = list(parts)
    if any(part is None for part in known):
        return None
    return between.join(part for part in known if part is not None)
