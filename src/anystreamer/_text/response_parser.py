"""Splits an answer into reasoning, content and tool calls, with transformers' response parser.

The parser comes from ``tokenizer.get_response_parser()``; only its public methods are used. A live
stream needs more than a parser of complete answers, and this module adds it:

- A tool call counts when its end has been parsed. If a call was cut off, some of its arguments can
  parse, but a call without the others must not be made. Half a marker does not become text either.
- If a value does not parse although the model closed it, the parser raises. Here its text is
  emitted as it is, and left out of the message; the text after it is parsed as before.
- A marker in a string of JSON is a part of the string, if the value can be parsed so.
- Text is emitted without the white space around it that the parser removes at the end, so the
  deltas of a field, joined, are its value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

from .call_shape import marker_of
from .json_strings import JSONStrings
from .reasoning import Reasoning

__all__ = [
    "Delta",
    "ResponseParser",
    "reasoning_markers",
    "response_template_of",
    "validate_template",
]

# The content parsers whose value is the text itself: it is emitted while it is generated.
STREAMED = frozenset({"text", "int", "float", "bool"})
_NO_MARKER = "\0"  # ends text that could still become a marker, and is in no marker


@dataclass(slots=True)
class Delta:
    """What was parsed in one field: a part of its text, or a complete value."""

    field: str
    value: Any
    is_complete: bool = False


def validate_template(tokenizer: Any, processor: Any, parse_response: Any) -> dict[str, Any] | None:
    """The template that a ``parse_response`` argument selects; None for False.

    Raises:
        TypeError, ValueError: there is no template, or it is malformed.
    """
    if parse_response is False:
        return None
    if parse_response is not True and not isinstance(parse_response, Mapping):
        kind = type(parse_response).__name__
        raise TypeError(f"parse_response must be a bool or a response template (dict), got {kind}")
    if not callable(getattr(tokenizer, "get_response_parser", None)):
        raise ValueError(
            "parse_response: the tokenizer has no get_response_parser(); "
            "use one of transformers, in a release that has it"
        )
    template: Any = parse_response
    if parse_response is True:
        template = response_template_of(tokenizer, processor)
    if template is None:
        raise ValueError(
            "parse_response=True: the tokenizer has no response template; "
            "set tokenizer.response_template, or pass the template as parse_response={...}"
        )
    template = dict(template) if isinstance(template, Mapping) else template
    tokenizer.get_response_parser(template, prefix="")  # raises what is wrong with it
    # Required fields would make the parser raise when an answer was cut before them.
    fields = {name: {**field, "optional": True} for name, field in template["fields"].items()}
    return {**template, "fields": fields}


def response_template_of(tokenizer: Any, processor: Any) -> Any:
    """The response template of a processor or of its tokenizer; None if neither has one."""
    templates = (getattr(each, "response_template", None) for each in (processor, tokenizer))
    return next((each for each in templates if each is not None), None)


# The names of the field for reasoning in templates of transformers.
_REASONING = ("reasoning_content", "reasoning", "thinking")


def reasoning_markers(
    argument: str, template: Mapping[str, Any] | None
) -> tuple[str, Reasoning] | None:
    """The field that a template has for reasoning, and its markers; None if it has none.

    Args:
        argument: needs to know where the reasoning ends; for messages.
        template: the response template.

    Raises:
        ValueError: they are patterns, of which it is not known where a text ends.
    """
    fields = {} if template is None else template["fields"]
    name = next((name for name in _REASONING if name in fields), None)
    if name is None:
        return None
    markers = {key: marker_of(fields[name], key) for key in ("open", "close")}
    begin, end = markers["open"], markers["close"]
    if not (begin and end):
        raise ValueError(
            f"{argument}: in the response template, `open` and `close` of the field {name!r} must "
            "be texts, so that it is known where the reasoning ends and the format begins"
        )
    content = marker_of(fields.get("content", {}), "open") or ""
    anchor = (template or {}).get("start_anchor")
    # Harmony: the same token begins both, and each is a message of its own.
    token = begin.partition(">")[0] + ">"
    is_message = content.startswith(token) and isinstance(anchor, str)
    return name, Reasoning(begin, end, content, str(anchor) if is_message else "")


@dataclass(slots=True)
class _Hidden:
    """Where the parser first got escaped text in a value: to go back, if that does not parse.

    Then what looked like a marker in a string is a marker after all.
    """

    parser: Any  # as it was before
    length: int  # of the texts of the field, before
    texts: list[str]  # those since then, as they are


class ResponseParser:
    """Parses one answer: takes its text as it is generated, returns deltas of its fields."""

    def __init__(
        self, tokenizer: Any, template: dict[str, Any], prompt_ids: Sequence[int], tools: Any
    ) -> None:
        self._tokenizer = tokenizer
        self._fields: dict[str, Any] = template["fields"]
        self._defaults: dict[str, Any] = template.get("defaults", {})
        self._closed = deepcopy(self._defaults)  # the message, of the fields that are complete
        self._is_exact = True  # whether the parser's own message has everything, and no more
        self._message: dict[str, Any] | None = None
        self._open: str | None = None  # the field that the text is in
        self._field_text: list[str] = []  # of that field
        # White space of that field that was not emitted yet; None before its first other text.
        self._spaces: str | None = None
        self._strings = JSONStrings(self._fields)
        self._hidden: _Hidden | None = None  # in the value that the text is in

        def new_parser(prefix: str) -> Any:
            return tokenizer.get_response_parser(template, prefix=prefix, tools=tools)

        self._new_parser: Callable[[str], Any] = new_parser
        prompt = tokenizer.decode(prompt_ids) if prompt_ids else ""
        # The parser takes a prompt that does not open an answer for a part of the answer.
        anchors = {key: value for key, value in template.items() if key.startswith("start_anchor")}
        rest = {"content": "text", "content_args": {"strip": False}}
        opened = tokenizer.get_response_parser({**anchors, "fields": {"rest": rest}}, prefix=prompt)
        has_anchor = opened.finalize()[0].get("rest", "") != prompt
        self._parser = new_parser(prompt if has_anchor else "")
        self._take(self._parser.initial_events, [])  # of the prompt: not emitted
        if self._spaces is not None:  # the prompt's are not emitted either
            self._spaces = ""
        if self._open is not None:  # we cannot know whether it is inside a string
            self._strings.turn_off()

    @property
    def open_field(self) -> str | None:
        """The field that the text is in: before the first text, the one that the prompt opened."""
        return self._open

    def feed(self, text: str) -> list[Delta]:
        """Take more of the answer, and return the deltas that it completes."""
        deltas: list[Delta] = []
        singly = 0  # characters to take one by one
        while text:
            part, escaped = self._strings.take(text[:1] if singly else text, self._open)
            if self._strings.is_off and self._hidden is not None:
                text, singly = self._unhide() + text, 0
                continue
            if part != escaped and self._hidden is None:
                self._hidden = _Hidden(copy(self._parser), len(self._field_text), [])
            if self._feed_part(part, escaped, deltas):
                text, singly = text[len(part) :], max(singly - 1, 0)
            else:
                singly = len(part)
        return deltas

    def _feed_part(self, part: str, escaped: str, deltas: list[Delta]) -> bool:
        """Take a part, as it is and as the parser gets it. Returns False to take it again."""
        before = copy(self._parser)
        try:
            events = self._parser.feed(escaped)
        except Exception:  # the events before it are lost with it: find the character that raises
            if len(part) == 1 and self._hidden is None:
                self._merge(deltas, self._after_failure(part))
                return True
            self._parser = before
            if len(part) == 1 or self._strings.is_inside:
                self._strings.turn_off()
            return False
        if self._hidden is not None:
            self._hidden.texts.append(part)
        self._take(events, deltas)
        return True

    def _unhide(self) -> str:
        """Go back to where something was first hidden. Returns the text since, to take as it is."""
        assert self._hidden is not None
        hidden, self._hidden = self._hidden, None
        self._parser = hidden.parser
        del self._field_text[hidden.length :]
        self._strings.turn_off()
        return "".join(hidden.texts)

    def finish(
        self, *, has_ended: bool, end_ids: Sequence[int] = (), stop_string: str | None = None
    ) -> list[Delta]:
        """End the answer, and return what was held back.

        Args:
            has_ended: the model ended it; it was not cut off.
            end_ids: tokens that ended it and were not fed, since they are not part of it. They can
                close a field all the same.
            stop_string: ended it, and was not fed either.
        """
        deltas: list[Delta] = []
        end = self._tokenizer.decode(end_ids) if end_ids else ""
        if end and self._is_marker(end):
            if self._strings.is_inside:  # such a token is not a part of a string
                self._strings.turn_off()
            deltas += self.feed(end)
        self._is_exact &= has_ended
        while not self._end(deltas, has_ended=has_ended, stop_string=stop_string or ""):
            deltas += self.feed(self._unhide())
        if self._message is None:
            self._close_text()
            message = self._closed.items()
            self._message = {k: v for k, v in message if k in self._defaults or v not in _EMPTY}
        return deltas

    def _end(self, deltas: list[Delta], *, has_ended: bool, stop_string: str) -> bool:
        """End the parser. Returns False if the open value does not parse with what was hidden."""
        is_in_value = self._is_value(self._open)
        try:
            if is_in_value and not has_ended:
                self._close_value(stop_string, deltas)
            # If the answer was cut, the parser holds back the beginning of a marker, or what looks
            # like one, and it is left out. If a stop string ended it, no marker can have followed.
            elif has_ended or stop_string or "transform" in self._fields.get(self._open or "", ()):
                message, events = self._parser.finalize()
                if not has_ended:  # then a value among them is not complete
                    events = [event for event in events if not self._is_value(event["field"])]
                self._take(events, deltas)
                if self._is_exact:
                    self._message = message
        except Exception:
            if self._hidden is not None:
                return False
            deltas += self._failed() if is_in_value else []
        return True

    def _close_value(self, stop_string: str, deltas: list[Delta]) -> None:
        """End an answer that was cut off in a value. It counts if the stop string closes it."""
        while stop_string:
            part, escaped = self._strings.take(stop_string, self._open)
            stop_string = stop_string[len(part) :]
            if self._take_to_close(escaped, deltas):
                return
        self._take_to_close(_NO_MARKER, deltas)

    def _take_to_close(self, text: str, deltas: list[Delta]) -> bool:
        """Take no more than the end of the value. Returns whether it is in the text."""
        for event in self._parser.feed(text):
            self._take([event], deltas)
            if event["type"] == "region_close":
                return True
        return False

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a chat message. Reading it ends the answer."""
        if self._message is None:
            self.finish(has_ended=False)
        assert self._message is not None
        return self._message

    def _is_marker(self, end: str) -> bool:
        """Whether an end-of-sequence token closes the open field, and does not become its text."""
        trial = deepcopy(self._parser)
        try:
            events = trial.feed(end)
        except Exception:  # so it has closed something
            return True
        with contextlib.suppress(Exception):
            events += trial.finalize()[1]
        return end not in "".join(event.get("text", "") for event in events)

    def _is_value(self, field: str | None) -> bool:
        return field is not None and self._fields[field].get("content", "text") not in STREAMED

    def _take(self, events: Iterable[Mapping[str, Any]], deltas: list[Delta]) -> None:
        for event in events:
            field = event["field"]
            if event["type"] == "region_open":
                self._open, self._field_text, self._spaces = field, [], None
                self._begin_value()
            elif event["type"] == "region_chunk":
                self._field_text.append(event["text"])
                text = "" if event["dirty"] else self._strip_incrementally(field, event["text"])
                self._merge(deltas, [Delta(field, text)] if text else [])
            else:
                self._open = None
                self._begin_value()
                self._close(field, event["value"])
                if self._is_value(field):
                    deltas.append(Delta(field, event["value"], is_complete=True))

    def _begin_value(self) -> None:
        self._strings.begin()
        self._hidden = None

    def _merge(self, deltas: list[Delta], new: Iterable[Delta]) -> None:
        for delta in new:
            last = deltas[-1] if deltas else None
            if last is None or last.field != delta.field or last.is_complete or delta.is_complete:
                deltas.append(delta)
            else:
                last.value += delta.value

    def _strip_incrementally(self, field: str, text: str) -> str:
        if not self._fields[field].get("content_args", {}).get("strip", True):
            return text
        text = text.lstrip() if self._spaces is None else self._spaces + text
        shown = text.rstrip()
        if shown or self._spaces is not None:
            self._spaces = text[len(shown) :]
        return shown

    def _close(self, field: str, value: Any) -> None:
        join = self._fields[field].get("join")
        if join is not None and field in self._closed:
            self._closed[field] += join + value
        elif join is None and self._fields[field].get("repeats"):
            self._closed.setdefault(field, []).append(value)
        elif value != "" or field not in self._closed:  # white space between two values
            self._closed[field] = value

    def _close_text(self) -> None:
        """Keep the text of a field that the parser has not closed."""
        spec = self._fields.get(self._open or "", {"content": None})
        if self._open and spec.get("content", "text") == "text" and "transform" not in spec:
            text = "".join(self._field_text)
            is_stripped = spec.get("content_args", {}).get("strip", True)
            self._close(self._open, text.strip() if is_stripped else text)
        self._open = None

    def _failed(self) -> list[Delta]:
        """Emit the open value as text: it does not parse."""
        field, self._open, self._is_exact = self._open, None, False
        self._begin_value()
        return (
            [Delta(field, "".join(self._field_text), is_complete=True)] if field is not None else []
        )

    def _after_failure(self, character: str) -> list[Delta]:
        field = self._open
        if not self._is_value(field):
            self._close_text()
        deltas = self._failed()
        self._parser = self._new_parser("")
        # A pattern's end is only known from the character after it, which is not part of it.
        if field is not None and "close" not in self._fields[field]:
            deltas += self.feed(character)
        return deltas


_EMPTY: tuple[Any, ...] = (None, "", [], {})
