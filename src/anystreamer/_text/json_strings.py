"""Hides from a parser what looks like the end of a field, but is inside a string of JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import punctuation
from typing import Any

__all__ = ["JSONStrings"]

# The inside of a string, as far as it is there: the group is a backslash whose character is not.
_INSIDE = re.compile(r'(?:[^"\\\x00-\x1f]++|\\.)*+(\\?)', re.DOTALL)


class JSONStrings:
    r"""Follows an answer, and escapes in the strings of JSON what can be part of a closing marker.

    Parsers of response templates look for the marker alone: a ``</tool_call>`` in an argument would
    end the call. As ``\u003c/tool_call\u003e`` it does not, and is the same JSON.

    Args:
        fields: of the response template.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        found = {name: _marks_of(field) for name, field in fields.items()}
        self._marks = {name: marks for name, marks in found.items() if marks is not None}
        self._inside: re.Pattern[str] | None = None  # the marks of the string that the text is in
        self._is_after_backslash = False
        self.is_off = False  #: the field is passed on as it is

    @property
    def is_inside(self) -> bool:
        """Whether the text is inside a string."""
        return self._inside is not None

    def begin(self) -> None:
        """Another field begins."""
        self._inside, self._is_after_backslash, self.is_off = None, False, False

    def turn_off(self) -> None:
        """Leave the rest of this field as it is: it is not JSON."""
        self.begin()
        self.is_off = True

    def take(self, text: str, field: str | None) -> tuple[str, str]:
        """The first part of a text, as it is and with what is escaped in it.

        The field can change within a text, but not within a part.

        Args:
            text: the next text of the answer; not empty.
            field: the one that is open.
        """
        if self._inside is not None:
            return self._take_inside(text, self._inside)
        if text[0] == '"' and field in self._marks and not self.is_off:
            self._inside = self._marks[field]
            return text[0], text[0]
        end = text.find('"', 1) if self._marks else -1
        part = text if end < 0 else text[:end]
        return part, part

    def _take_inside(self, text: str, marks: re.Pattern[str]) -> tuple[str, str]:
        start = int(self._is_after_backslash)
        found = _INSIDE.match(text, start)
        assert found is not None  # it matches an empty text, too
        if found.end():
            self._is_after_backslash = bool(found[1])
            part = text[: found.end()]
            return part, part[:start] + marks.sub(_escaped, part[start:])
        if text[0] == '"':
            self._inside = None
            return text[0], text[0]
        self.turn_off()  # a line break, for example: JSON has none inside of strings
        return text, text


def _marks_of(field: Mapping[str, Any]) -> re.Pattern[str] | None:
    """What to escape in the strings of a field; None if it is not JSON."""
    args = field.get("content_args", {})
    own_kinds = ("allow_non_json", "string_delims", "unquoted_keys")
    if field.get("content") != "json" or any(args.get(each) for each in own_kinds):
        return None
    given = field.get("close", ())
    closes = [given] if isinstance(given, str) else [*given]
    # Not letters: those after a backslash have a meaning of their own.
    characters = set("".join([*closes, field.get("close_pattern") or ""])) & set(punctuation)
    if not (characters := characters - {'"', "\\"}):
        return None
    return re.compile(rf"\\.|[{re.escape(''.join(sorted(characters)))}]", re.DOTALL)


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith("\\") else f"\\u{ord(found[0]):04x}"
