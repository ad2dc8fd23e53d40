"""Tool calls: from the deltas of one answer, in any order, to complete calls. Pure."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._limits import MAX_CALLS, LimitExceeded, Limits
from ._shapes import items

__all__ = ["ToolCalls"]

# How many characters are parsed to see whether arguments are complete, while they still arrive.
PARSED_AT_MOST = 2**22
_ENDS = frozenset('}"l')  # of an object, of JSON in JSON, and of null

# Any other key of a delta stays with the call, such as the signature that Gemini wants back.
_KNOWN_KEYS = frozenset(("index", "id", "type", "function", "custom", "name", "arguments", "input"))


class ToolCalls:
    """Collects the calls of one answer. They are complete at its end, and not before.

    A call has its name in the first delta, and its arguments in pieces. The pieces of parallel
    calls can alternate. OpenAI's API gives each call an index for that. Many servers have none, or
    give all calls the index 0: there an id or a name tells where a new call begins.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = 0
        self._values = 0
        self._calls: list[_Call] = []

    def feed(self, deltas: Any) -> None:
        """Take the deltas of an event: a list, or only one (older TGI).

        Raises:
            LimitExceeded: the calls are too large, or too many.
            AttributeError, TypeError: a delta of another kind.
        """
        deltas = (deltas,) if isinstance(deltas, Mapping) else items(deltas)
        for position, delta in enumerate(deltas):
            self._feed_one(delta, latest=position - len(deltas))

    def _feed_one(self, delta: Mapping[str, Any], *, latest: int) -> None:
        content = delta.get("function") or delta.get("custom") or delta
        arguments = _text_of(content.get("arguments", content.get("input")))
        key = _Key(delta.get("index"), _name(delta.get("id")), _name(content.get("name")))
        call = self._find(key, arguments, latest=latest)
        if call is None:
            call = self._begin(key)
        elif key.name and call.is_complete:
            arguments = ""  # the server has sent the whole call again
        extra = {
            name: value
            for name, value in delta.items()
            if name not in _KNOWN_KEYS and value is not None
        }
        self._check_size(arguments, extra)
        call.id = call.id or key.id
        call.name = call.name or key.name
        call.is_custom = call.is_custom or bool(delta.get("custom"))
        call.arguments.append(arguments)
        call.extra |= extra

    def _begin(self, key: _Key) -> _Call:
        if len(self._calls) == MAX_CALLS:
            raise LimitExceeded(f"the answer has more than {MAX_CALLS} tool calls")
        call = _Call(key.index)
        self._calls.append(call)
        return call

    def _check_size(self, arguments: str, extra: Mapping[str, Any]) -> None:
        """Bound what is kept, and the time that it takes to parse at the end."""
        self._size += len(arguments) + (len(str(extra)) if extra else 0)
        self._values += arguments.count(",")
        limits = self._limits
        if self._size > limits.max_event_size or self._values > limits.max_values:
            raise limits.exceeded("max_event_size", "the content of the answer's tool calls")

    def finish(self, *, is_cut: bool) -> list[dict[str, Any] | str]:
        """Return the calls, in the order in which they began. A malformed call is its text.

        Args:
            is_cut: the answer was cut off. A call whose arguments are not complete is left out: it
                would not be the call that the model began.
        """
        values = (call.value for call in self._calls if not (is_cut and call.is_cut))
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

    index: Any
    id: str | None
    name: str | None


class _Arguments:
    """The arguments of a call: a text that grows until it is a JSON object."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._size = 0
        self._end = ""  # the last character that is not a space
        self._is_parsed = False
        self._object: dict[str, Any] | None = None
        self._characters_parsed = 0  # in all attempts

    def append(self, text: str) -> None:
        if text:
            self._text.write(text)
            self._size += len(text)
            self._end = text.rstrip()[-1:] or self._end
            self._is_parsed = False

    def __str__(self) -> str:
        text = self._text.getvalue()
        if text.isascii():
            return text
        # In JSON one character can be sent as two halves, each in a piece of its own.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def equals(self, text: str) -> bool:
        return self._size == len(text) and str(self) == text

    @property
    def is_empty(self) -> bool:
        """Whether it has no character, or spaces alone."""
        return not self._end

    @property
    def is_whole(self) -> bool:
        """Whether what has arrived so far is a JSON object.

        This is checked whenever the server repeats the call's name. So that the time does not grow
        with the square of the length, a text is parsed only if its last character can end an
        object, and only until `PARSED_AT_MOST`. By then it is clear that the server sends pieces,
        and not the same call over and over.
        """
        if not self._is_parsed:
            if self._end not in _ENDS or self._characters_parsed > PARSED_AT_MOST:
                return False
            self._characters_parsed += self._size
        return self.object is not None

    @property
    def object(self) -> dict[str, Any] | None:
        """The JSON object that it is; None if it is not one."""
        if not self._is_parsed:
            self._is_parsed = True
            self._object = _object_of(str(self))
        return self._object


@dataclass(slots=True)
class _Call:
    """One call, as far as it has arrived."""

    index: Any  # only compared
    id: str | None = None
    name: str | None = None
    is_custom: bool = False  # its argument is any text
    arguments: _Arguments = field(default_factory=_Arguments)
    extra: dict[str, Any] = field(default_factory=dict)

    def accepts(self, key: _Key, arguments: str) -> bool:
        """Whether a delta can continue this call, if its index does not tell."""
        if not key.name:
            return True  # some servers send a new id with each delta
        if self.name not in (None, key.name) or (key.id and self.id and key.id != self.id):
            return False
        if not (arguments and self.is_complete):
            return True
        is_same = key.id is not None and key.id == self.id
        return is_same and self.arguments.equals(arguments)

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole JSON object: more of them cannot follow."""
        return bool(self.name) and not self.arguments.is_empty and self.arguments.is_whole

    @property
    def is_cut(self) -> bool:
        """Whether the call is not complete, given that no more deltas come."""
        return not self.name or self.arguments.is_empty or self.arguments.object is None

    @property
    def value(self) -> dict[str, Any] | str:
        """The call in the form of a chat message; the text of its arguments if it is malformed."""
        arguments = self.arguments.object
        if not self.name or (arguments is None and not self.is_custom):
            return str(self.arguments)
        if self.is_custom:
            content = {
                "type": "custom",
                "custom": {"name": self.name, "input": str(self.arguments)},
            }
        else:
            function = {"name": self.name, "arguments": arguments}
            content = {"type": "function", "function": function}
        return {**({} if self.id is None else {"id": self.id}), **content, **self.extra}


def _name(sent: Any) -> str | None:
    """A name or an id."""
    if sent is None or isinstance(sent, str):
        return sent
    if isinstance(sent, int) and not isinstance(sent, bool):
        return str(sent)
    raise TypeError(f"a tool call's name and id must be text, got {sent!r:.60}")


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
            except (ValueError, RecursionError):
                return None
    if value is None:  # a function without parameters
        return {}
    return value if isinstance(value, dict) else None
