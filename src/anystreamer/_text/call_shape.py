"""How a response template writes a tool call: its markers, and the places of its parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .marker_patterns import (
    Characters,
    Edge,
    Group,
    Literal,
    Node,
    Options,
    Repeat,
    Sequence,
    parse_pattern,
)

__all__ = ["CallShape", "Opening", "flat_nodes", "marker_of", "nodes_of", "shape_of_calls"]

_FIELD = "tool_calls"
_PLACEHOLDER = re.compile(r"\{(\w+)(?:\.(\w+))?\}")


@dataclass(frozen=True, slots=True)
class Opening:
    """One way to open a call."""

    before: tuple[Node, ...]  #: what can stand before it, and need not
    lead: str  #: the text by which a call is recognised
    rest: tuple[Node, ...]  #: what follows, up to the body


@dataclass(frozen=True, slots=True)
class CallShape:
    """The form of calls."""

    openings: tuple[Opening, ...]
    closes: tuple[tuple[Node, ...], ...]  #: ways to close it; an empty one is the end of the answer
    content: str  #: the parser of the body: "json", "text" or "xml-inline"
    content_args: Mapping[str, Any]
    is_list: bool  #: the body is a list of calls
    can_repeat: bool  #: a call can follow another
    name_group: str  #: the group in what opens it that has the function's name; "" for none
    name_key: str  #: otherwise the key in the body
    arguments_key: str  #: the key in the body that has the arguments; "" where they are the body
    other_keys: tuple[str, ...]  #: more keys that the body must have


def shape_of_calls(template: Mapping[str, Any]) -> CallShape:
    """Read the form of calls in a response template.

    Raises:
        ValueError: it has none, or one for which no grammar can be made.
    """
    field = template["fields"].get(_FIELD)
    if field is None:
        raise ValueError(f"the response template has no field {_FIELD!r}")
    try:
        return _shape_of(field)
    except ValueError as exc:
        raise ValueError(
            f"the field {_FIELD!r} of the response template has a format that is not known: {exc}"
        ) from None


def _shape_of(field: Mapping[str, Any]) -> CallShape:
    content = field.get("content", "text")
    if content not in ("json", "text", "xml-inline"):
        raise ValueError(f"its content is {content!r}")
    args = field.get("content_args", {})
    if content == "json" and (args.get("unquoted_keys") or args.get("string_delims")):
        raise ValueError("its content is a JSON of its own kind")
    openings = tuple(_openings(field))
    if not openings:
        raise ValueError("it has no opening marker")
    is_list = bool(field.get("transform_each"))
    name, arguments, others = _places(field.get("transform"))
    names = {group.name for opening in openings for group in _groups(opening.rest)}
    places = [_place(each, names, is_list=is_list) for each in (name, arguments, *others)]
    (name_group, name_key), (arguments_group, arguments_key), *other_places = places
    if arguments_group or (content != "json" and (arguments_key or not name_group)):
        raise ValueError("its transform takes the arguments from elsewhere than its content")
    if not (name_group or name_key):
        raise ValueError("its transform has the whole content as the name")
    return CallShape(
        openings,
        tuple(nodes_of(field, "close")) or ((),),
        content,
        args,
        is_list,
        bool(field.get("repeats")),
        name_group,
        name_key,
        arguments_key,
        tuple(key for group, key in other_places if not group and key),
    )


def _places(transform: Any) -> tuple[str, str, list[str]]:
    """The placeholders of the name and of the arguments, and all others."""
    inner = transform.get("function", transform) if isinstance(transform, Mapping) else transform
    if inner in (None, "{content}"):
        return "{content.name}", "{content.arguments}", []
    if not isinstance(inner, Mapping) or not {"name", "arguments"} <= inner.keys():
        raise ValueError("its transform has no name and arguments")
    values = [*transform.values(), *inner.values()] if inner is not transform else inner.values()
    known = (inner["name"], inner["arguments"])
    others = [
        each
        for each in values
        if isinstance(each, str) and _PLACEHOLDER.fullmatch(each) and each not in known
    ]
    return *known, others


def _place(placeholder: Any, groups: set[str], *, is_list: bool) -> tuple[str, str]:
    """The group, or the key in the body, that a placeholder stands for. Both empty: the body."""
    found = _PLACEHOLDER.fullmatch(placeholder) if isinstance(placeholder, str) else None
    if found is None:
        raise ValueError(f"its transform has {placeholder!r:.80}")
    root, key = found[1], found[2] or ""
    if is_list and not key and root not in groups:
        return "", root
    if root == "content" and not is_list:
        return "", key
    if root in groups and not key:
        return root, ""
    raise ValueError(f"its transform has {placeholder!r}")


def _openings(field: Mapping[str, Any]) -> Iterator[Opening]:
    for nodes in nodes_of(field, "open"):
        before = []
        while nodes and _can_be_empty(nodes[0]):
            before.append(nodes[0])
            nodes = nodes[1:]
        if not nodes or not isinstance(nodes[0], Literal):
            raise ValueError("no text opens it")
        yield Opening(tuple(before), nodes[0].text, nodes[1:])


def nodes_of(field: Mapping[str, Any], side: str) -> Iterator[tuple[Node, ...]]:
    """The ways to open or to close a field, each as a sequence of nodes."""
    if pattern := field.get(f"{side}_pattern"):
        node = parse_pattern(pattern)
        for option in node.nodes if isinstance(node, Options) else (node,):
            yield tuple(flat_nodes(option))
    given = field.get(side, ())
    for text in [given] if isinstance(given, str) else given:
        yield (Literal(text),)


def marker_of(field: Mapping[str, Any], side: str) -> str | None:
    """The text that opens or closes a field, if there is a way that is only a text."""
    for nodes in nodes_of(field, side):
        kept = [node for node in nodes if not _can_be_empty(node)]
        if len(kept) == 1 and isinstance(kept[0], Literal):
            return kept[0].text
    return None


def flat_nodes(*nodes: Node) -> Iterator[Node]:
    """The nodes, without sequences in sequences."""
    for node in nodes:
        if isinstance(node, Sequence):
            yield from flat_nodes(*node.nodes)
        else:
            yield node


def _can_be_empty(node: Node) -> bool:
    return isinstance(node, Edge) or (isinstance(node, Repeat) and node.minimum == 0)


def _groups(nodes: Iterable[Node]) -> Iterator[Group]:
    for node in nodes:
        match node:
            case Group():
                yield node
                yield from _groups((node.node,))
            case Sequence(nodes=inner) | Options(nodes=inner):
                yield from _groups(inner)
            case Repeat(node=repeated):
                yield from _groups((repeated,))
            case Literal() | Characters() | Edge():
                pass
