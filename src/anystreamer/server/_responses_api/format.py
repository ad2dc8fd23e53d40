"""Responses of OpenAI's Responses API: the whole object, and its events. Pure."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..._streams import TextChunk, Usage
from .._custom_tools import input_of
from .._errors import APIError
from .._openai_choices import Token, as_json, field_of, logprob_entry
from .input import REASONING_PREFIX
from .tools import CustomTool, Offered

__all__ = ["ResponseBuilder"]

Status = Literal["in_progress", "completed", "incomplete"]


class Encoded(str):
    """JSON: a part of several events, which is encoded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextKind:
    """A kind of item that has text: what its events and its parts are called."""

    name: str
    prefix: str  # of its id
    events: str  # the types of its events begin with this
    part: str  # the type of its part
    lists_tokens: bool  # with their log-probabilities
    fields: Mapping[str, Any]  # which only items of this kind have

    def new_part(self, text: str, logprobs: Encoded) -> Encoded:
        """The part that has all of the item's text."""
        part: dict[str, Any] = {"type": self.part, "text": text}
        own = {"annotations": [], "logprobs": logprobs} if self.lists_tokens else {}
        return _object({**part, **own})

    def new_item(self, id: str, status: Status, parts: Sequence[Encoded]) -> Encoded:
        """The item."""
        item = {"id": id, "type": self.name, "status": status, "content": _array(parts)}
        return _object({**item, **self.fields})


# By the field of a chat message. Text of any other field has no place in this API: it is left out.
TEXT_KINDS = {
    "content": TextKind(
        name="message",
        prefix="msg",
        events="response.output_text",
        part="output_text",
        lists_tokens=True,
        fields={"role": "assistant"},
    ),
    "reasoning_content": TextKind(
        name="reasoning",
        prefix=REASONING_PREFIX,
        events="response.reasoning_text",
        part="reasoning_text",
        lists_tokens=False,
        fields={"summary": [], "encrypted_content": None},
    ),
}


@dataclass(frozen=True, slots=True)
class CallKind:
    """A kind of item that calls a tool: what it and its events are called."""

    name: str
    prefix: str  # of its id
    events: str  # the types of its events begin with this
    field: str  # has what the tool is called with


FUNCTION_CALL = CallKind("function_call", "fc", "response.function_call_arguments", "arguments")
CUSTOM_CALL = CallKind("custom_tool_call", "ctc", "response.custom_tool_call_input", "input")


class TextItem:
    """An item whose text is being made."""

    def __init__(self, kind: TextKind, output_index: int) -> None:
        self.kind = kind
        self.id = f"{kind.prefix}_{secrets.token_hex(24)}"
        self._texts: list[str] = []
        self._logprobs: list[Encoded] = []
        self.at_item = {"output_index": output_index}
        self.at_part = {"item_id": self.id, **self.at_item, "content_index": 0}
        # An event with text begins with this. Its number, its text and its tokens follow.
        head = {"type": f"{kind.events}.delta", **self.at_part}
        self._head = f"event: {kind.events}.delta\ndata: {as_json(head)[:-1]}"

    @property
    def logprobs(self) -> dict[str, Any]:
        """The field of its last event that lists all tokens, if it lists them."""
        return {"logprobs": _array(self._logprobs)} if self.kind.lists_tokens else {}

    @property
    def text(self) -> str:
        """All of its text so far."""
        return "".join(self._texts)

    @property
    def part(self) -> Encoded:
        """The part that has its text."""
        return self.kind.new_part(self.text, _array(self._logprobs))

    def as_object(self, status: Status) -> Encoded:
        """The item."""
        parts = [] if status == "in_progress" else [self.part]
        return self.kind.new_item(self.id, status, parts)

    def take(self, text: str, tokens: Sequence[Token]) -> Sequence[Encoded]:
        """Take more text. Returns its tokens as they are listed."""
        self._texts.append(text)
        if not (tokens and self.kind.lists_tokens):
            return []
        logprobs = [
            _object({**_listed(token), "top_logprobs": [_listed(each) for each in token.top]})
            for token in tokens
        ]
        self._logprobs += logprobs
        return logprobs

    def delta(self, number: int, text: str, logprobs: Sequence[Encoded]) -> str:
        """The event with more text."""
        listed = ""
        if self.kind.lists_tokens:
            listed = f',"logprobs":{_array(logprobs)}'
        return f'{self._head},"sequence_number":{number},"delta":{json.dumps(text)}{listed}}}\n\n'


class ResponseBuilder:
    """The response to one request: takes the chunks of a stream.

    Args:
        model: the model's name.
        settings: what the response repeats of its request: an object, as JSON. All events with the
            response have it, so it is encoded once.
        streams: whether the response is sent in events. If not, `take` and `take_end` return empty
            strings, and only `full_response` is used.
        offered: the tools that the model can call.
    """

    def __init__(
        self, model: str, settings: str, *, streams: bool, offered: Iterable[Offered] = ()
    ) -> None:
        self._id = f"resp_{secrets.token_hex(24)}"
        self._created = int(time.time())
        self._model = model
        self._settings = settings
        self._streams = streams
        self._offered = {each.name_in_chat: each for each in offered}
        self._number = 0  # of the next event
        self._output: list[Encoded] = []  # items that are finished
        self._item: TextItem | None = None  # the one that is not
        self._reasoning_tokens = 0
        self._is_cut = False

    @property
    def origin(self) -> tuple[str, str]:
        """The response's id, and the model's name in it."""
        return self._id, self._model

    # -- in events

    def take(self, chunk: TextChunk | None, tokens: Sequence[Token]) -> str:
        """Take a chunk and its tokens, or more of its tokens only. Returns its events."""
        if chunk is None:
            is_listed = self._item is not None and self._item.kind.lists_tokens
            return self._text("", tokens) if is_listed else ""
        field, text = field_of(chunk)
        if field == "reasoning_content":
            self._reasoning_tokens += len(chunk.token_ids)
        if not isinstance(text, str):
            opening = self._begin() + self._close("completed")
            return opening + "".join(self._call(call["id"], call["function"]) for call in text)
        if (kind := TEXT_KINDS.get(field)) is None:
            return ""
        opening = ""
        if self._item is None or self._item.kind is not kind:
            opening = self._begin() + self._close("completed") + self._open(kind)
        return opening + self._text(text, tokens)

    def take_end(self, reason: str, tokens: Sequence[Token]) -> str:
        """Take the finish reason, and the tokens after the last chunk. Returns the last events."""
        self._is_cut = reason == "length"
        opening = self._begin()
        if self._item is None and not self._output:
            opening += self._open(TEXT_KINDS["content"])
        ending = self._text("", tokens) if tokens and self._item is not None else ""
        return opening + ending + self._close("incomplete" if self._is_cut else "completed")

    def end(self, usage: Usage | None) -> str:
        """The event with the whole response."""
        status = "incomplete" if self._is_cut else "completed"
        return self._response_event(f"response.{status}", self.full_response(usage))

    def failed(self, error: APIError) -> str:
        """The events that end the response with an error."""
        fields = error.object["error"]
        opening = self._begin()
        if self._item is not None:
            self._output.append(self._item.as_object("incomplete"))
        is_about_request = fields["type"] == "invalid_request_error"
        in_response = {
            "code": "invalid_prompt" if is_about_request else "server_error",
            "message": fields["message"],
        }
        response = self._response("failed", error=in_response, output=_array(self._output))
        in_event = {name: fields[name] for name in ("code", "message", "param")}
        return (
            opening
            + self._event("error", **in_event)
            + self._response_event("response.failed", response)
        )

    def _begin(self) -> str:
        """The first events; empty if they were sent before."""
        if self._number or not self._streams:
            return ""
        response = self._response("in_progress")
        created = self._response_event("response.created", response)
        return created + self._response_event("response.in_progress", response)

    def _open(self, kind: TextKind) -> str:
        self._item = item = TextItem(kind, len(self._output))
        return self._event(
            "response.output_item.added", **item.at_item, item=item.as_object("in_progress")
        ) + self._event(
            "response.content_part.added", **item.at_part, part=kind.new_part("", _array(()))
        )

    def _text(self, text: str, tokens: Sequence[Token]) -> str:
        assert self._item is not None
        logprobs = self._item.take(text, tokens)
        if not self._streams:
            return ""
        self._number += 1
        return self._item.delta(self._number - 1, text, logprobs)

    def _close(self, status: Status) -> str:
        if (item := self._item) is None:
            return ""
        self._item = None
        self._output.append(item.as_object(status))
        return (
            self._event(f"{item.kind.events}.done", **item.at_part, text=item.text, **item.logprobs)
            + self._event("response.content_part.done", **item.at_part, part=item.part)
            + self._event("response.output_item.done", **item.at_item, item=self._output[-1])
        )

    def _call(self, id: str, function: Mapping[str, str]) -> str:
        called = self._offered.get(function["name"])
        named = {"name": function["name"]} if called is None else called.as_called
        arguments = function["arguments"]
        if called is not None and isinstance(called.tool, CustomTool):
            return self._call_item(CUSTOM_CALL, id, named, input_of(arguments), {})
        return self._call_item(FUNCTION_CALL, id, named, arguments, {"name": named["name"]})

    def _call_item(
        self, kind: CallKind, id: str, named: Mapping[str, str], text: str, more: Mapping[str, str]
    ) -> str:
        """Events of a call.

        *text* is what the tool is called with, and *more* are fields of the event that ends it.
        """
        item = {
            "id": f"{kind.prefix}_{secrets.token_hex(24)}",
            "type": kind.name,
            "call_id": id,
            **named,
        }
        at_item = {"output_index": len(self._output)}
        at_text = {"item_id": item["id"], **at_item}
        started = {**item, kind.field: "", "status": "in_progress"}
        done = {**item, kind.field: text, "status": "completed"}
        self._output.append(_object(done))
        return (
            self._event("response.output_item.added", **at_item, item=started)
            + self._event(f"{kind.events}.delta", **at_text, delta=text)
            + self._event(f"{kind.events}.done", **at_text, **more, **{kind.field: text})
            + self._event("response.output_item.done", **at_item, item=done)
        )

    def _event(self, type: str, **fields: Any) -> str:
        if not self._streams:
            return ""
        data = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {type}\ndata: {_object(data)}\n\n"

    def _response_event(self, type: str, response: str) -> str:
        head = as_json({"type": type, "sequence_number": self._number})
        self._number += 1
        return f'event: {type}\ndata: {head[:-1]},"response":{response}}}\n\n'

    # -- whole

    def full_response(self, usage: Usage | None) -> str:
        """The response as JSON, when its end has been taken."""
        more = {"output": _array(self._output), "usage": usage and self._usage(usage)}
        if self._is_cut:
            reason = {"reason": "max_output_tokens"}
            return self._response("incomplete", incomplete_details=reason, **more)
        return self._response("completed", completed_at=int(time.time()), **more)

    def _response(self, status: str, **more: Any) -> str:
        own = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": [],
            "usage": None,
            **more,
        }
        return f"{_object(own)[:-1]},{self._settings[1:]}"

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


def _listed(token: Token) -> dict[str, Any]:
    entry = logprob_entry(token)
    return {**entry, "bytes": entry["bytes"] or []}  # a list in this API, also if not known


def _object(fields: Mapping[str, Any]) -> Encoded:
    pairs = (
        f'"{name}":{value if isinstance(value, Encoded) else as_json(value)}'
        for name, value in fields.items()
    )
    return Encoded(f"{{{','.join(pairs)}}}")


def _array(items: Iterable[Encoded]) -> Encoded:
    return Encoded(f"[{','.join(items)}]")
