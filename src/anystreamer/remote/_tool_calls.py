"""Tool calls: from the deltas of one answer, in any order, to complete calls. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ToolCalls"]

# Everything else in a delta, such as the signature that Gemini wants back, stays with the call.
_KNOWN_KEYS = frozenset(("index", "id", "type", "function", "custom", "name", "arguments", "input"))


class ToolCalls:
    """Collects the calls of one answer. They are complete at its end, and not before.

    A call has its name in the first delta, and its arguments in pieces. The pieces of parallel
    calls can alternate. OpenAI's API gives each call an index for that. Many servers have none, or
    give all calls the index 0: there an id or a name tells where a new call begins.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def feed(self, deltas: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Take the deltas of an event: a list, or only one (older TGI)."""
        if isinstance(deltas, Mapping):
            deltas = (deltas,)
        for position, delta in enumerate(deltas):
            content = delta.get("function") or delta.get("custom") or delta
            arguments = _text_of(content.get("arguments", content.get("input")))
            key = _Key(delta.get("index"), delta.get("id"), content.get("name"))
            call = self._find(key, arguments, latest=position - len(deltas))
            if call is None:
                call = _Call(key.index)
                self._calls.append(call)
            elif key.name and call.is_complete:
                arguments = ""  # it was sent again as a whole
            call.id = call.id or key.id
            call.name = call.name or key.name
            call.is_custom = call.is_custom or bool(delta.get("custom"))
            call.arguments.append(arguments)
            call.extra |= {
                name: value
                for name, value in delta.items()
                if name not in _KNOWN_KEYS and value is not None
            }

    def finish(self, *, is_cut: bool) -> list[dict[str, Any] | str]:
        """Return the calls, in the order in which they began. A malformed call is its text.

        Args:
            is_cut: the answer was cut off, so that a call whose arguments are not complete would
                be another call than the model wanted: it is left out.
        """
        values = (call.value for call in self._calls if call.is_complete or not is_cut)
        return [value for value in values if value]

    def _find(self, key: _Key, arguments: str, *, latest: int) -> _Call | None:
        """The call that a delta continues; None if it begins one."""
        calls = self._calls[::-1]
        if key.index is not None:
            same = [call for call in calls if call.index == key.index]
            if same:
                return same[0] if same[0].accepts(key, arguments) else None
            if key.name:
                return None
        if key.id and (same := [call for call in calls if call.id == key.id]):
            return same[0] if same[0].accepts(key, arguments) else None
        if key.name:
            return next((call for call in calls if call.accepts(key, arguments)), None)
        if key.id and key.index is not None:
            return None
        # A delta with arguments alone continues the latest call; several of them in an event
        # continue the latest calls, in their order.
        return self._calls[latest] if len(calls) >= -latest else None


@dataclass(frozen=True, slots=True)
class _Key:
    """What identifies the call that a delta belongs to."""

    index: int | None
    id: str | None
    name: str | None


@dataclass(slots=True)
class _Call:
    """One call, as far as it has come."""

    index: int | None
    id: str | None = None
    name: str | None = None
    is_custom: bool = False  # its argument is any text
    arguments: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def accepts(self, key: _Key, arguments: str) -> bool:
        """Whether a delta can continue this call, if its index does not tell."""
        if not key.name:
            return True  # some servers send a new id with each delta
        if self.name not in (None, key.name) or (key.id and self.id and key.id != self.id):
            return False
        if not (arguments and self.is_complete):
            return True
        is_repeated = arguments == "".join(self.arguments)
        return is_repeated and key.id is not None and key.id == self.id

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole JSON object: more of them cannot follow."""
        text = "".join(self.arguments)
        return bool(self.name and text.strip()) and _object_of(text) is not None

    @property
    def value(self) -> dict[str, Any] | str:
        """The call as a message has it. The text of its arguments if it is malformed."""
        text = "".join(self.arguments)
        arguments = _object_of(text)
        if not self.name or (arguments is None and not self.is_custom):
            return text
        if self.is_custom:
            content = {"type": "custom", "custom": {"name": self.name, "input": text}}
        else:
            function = {"name": self.name, "arguments": arguments}
            content = {"type": "function", "function": function}
        return {**({} if self.id is None else {"id": self.id}), **content, **self.extra}


def _text_of(arguments: Any) -> str:
    """A piece of arguments. Some servers send them as an object, and not as JSON in a str."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _object_of(text: str) -> dict[str, Any] | None:
    """The arguments that a text is; None if it is not a JSON object."""
    value: Any = text.strip() or "{}"
    for _ in range(2):  # some servers send JSON in JSON
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return None
    if value is None:  # a function without parameters
        return {}
    return value if isinstance(value, dict) else None
