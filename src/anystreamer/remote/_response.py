"""A server's answer: from events of OpenAI's API to chunks of text, and how it ended. Pure."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._streams import FinishReason, Row, TextChunk, Usage
from .._text import StopStrings
from ._limits import LOGPROB_SIZE, MAX_DELTAS, PIECE_SIZE, LimitExceeded, Limits
from ._shapes import (
    ServerError,
    choices_of,
    error_in,
    finish_reason_of,
    has_reason,
    items,
    logprobs_of,
    text_parts,
    usage_in,
)
from ._tool_calls import ToolCalls

__all__ = ["InvalidEvent", "RemoteRow", "ResponseParser"]

DONE = b"[DONE]"

# A longer id or name is cut (characters).
MAX_NAME = 200


class InvalidEvent(Exception):
    """An event that OpenAI's API does not have."""


@dataclass(slots=True)
class RemoteRow(Row):
    """A sequence that a server generates: the ids of its tokens are unknown; the server counts."""

    server_usage: Usage | None = None
    answer: ResponseParser | None = None  # of a chat, which has fields and makes a message

    @property
    def message(self) -> dict[str, Any] | None:
        if self.answer is None or self.finish_reason is None:
            return None
        return self.answer.message

    @property
    def has_fields(self) -> bool:
        return self.answer is not None

    def compute_usage(self) -> Usage | None:
        return self.server_usage


class ResponseParser:
    """Parses one answer: events go in, chunks of its text and of its fields come out.

    Stop strings are looked for here as well: some servers leave them in the text.
    """

    def __init__(
        self,
        row: RemoteRow,
        stop: Sequence[str],
        limits: Limits,
        *,
        logprobs: bool,
        names_content: bool,
    ) -> None:
        self.is_done = False  #: the server has sent its last event
        self.has_enough = False  #: a stop string was found here
        self.events_seen = 0  #: events with text, a tool call or a reason
        self._row = row
        self._limits = limits
        self._size = 0
        self._stop = stop
        self._stop_strings = StopStrings(stop)
        self._characters = _Characters()
        self._logprobs: list[float] | None = [] if logprobs else None  # for the next chunk
        self._content_field = "content" if names_content else None
        self._field = "content"  # of the latest text
        self._field_texts: dict[str, list[str]] = {}
        self._tool_calls = ToolCalls(limits)
        self._complete_calls: list[dict[str, Any]] = []
        self._has_delta = False
        self._reason: FinishReason | None = None  # the server's, or a stop string found here
        self._reasons_are_early = False
        self.ended_with_text = False  #: the reason came with text: more can follow
        self._body_ended = False

    @property
    def ended(self) -> FinishReason | None:
        """Why the answer has ended; None as long as more text can come.

        Some servers send a reason with each piece of text (Gemini's proxies). Once text has
        followed a reason, only the last event or the end of the body ends the answer.
        """
        is_final = self.is_done or self.has_enough or self._body_ended
        return self._reason if is_final or not self._reasons_are_early else None

    def end_of_body(self) -> None:
        """The server has sent all of the body."""
        self._body_ended = True

    def feed(self, data: bytes, elapsed: float) -> Iterator[TextChunk]:
        """Take the data of an event, and yield its chunks: also those before an error in it.

        Raises:
            InvalidEvent: it is not an event of OpenAI's API.
            LimitExceeded: the answer, or the event, is too large.
            ServerError: the event reports an error.
        """
        data = data.strip()
        if data == DONE:
            self.is_done = True
        if data in (b"", DONE) or data.startswith(b":"):  # a comment as data (Vertex)
            return
        if data.count(b",") > self._limits.max_values:
            raise self._limits.exceeded(
                "max_event_size", "the number of values in an event of the answer"
            )
        try:
            event = json.loads(data)
            if (error := error_in(event)) is not None:
                raise ServerError(error)
            self._note_origin(event)
            has_usage, usage = usage_in(event)
            if has_usage:
                self._row.server_usage = usage
                self.ended_with_text = False  # unless this event has text
            # A server can send several answers in place of one.
            deltas = [each for each in choices_of(event) if each.get("index") in (None, 0, "0")]
            if len(deltas) > MAX_DELTAS:
                raise LimitExceeded(f"an event has more than {MAX_DELTAS} deltas of one choice")
            for choice in deltas:
                yield from self._choice(choice, event, elapsed)
        except (LimitExceeded, ServerError):
            raise
        except Exception as exc:  # JSON of any other shape, which can raise any error
            shown = data[:200].decode(errors="replace")
            raise InvalidEvent(
                f"the server sent an event that OpenAI's API does not have: {shown}"
            ) from exc

    def finish(self, elapsed: float) -> list[TextChunk]:
        """Return the chunks that were held back, and the tool calls: no more events come."""
        chunks = self._held_back(elapsed)
        is_cut = self.ended in (None, FinishReason.LENGTH)
        for value in self._tool_calls.finish(is_cut=is_cut):
            chunk = self._chunk("", elapsed, "tool_calls", value)
            chunk.is_complete_value = True
            chunks.append(chunk)
            if not isinstance(value, str):
                self._complete_calls.append(value)
        return chunks

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a chat message to append to the conversation."""
        fields = {field: "".join(texts) for field, texts in self._field_texts.items()}
        calls = self._complete_calls
        content = fields.pop("content", "")
        return {
            "role": "assistant",
            **fields,
            **({"content": content} if content or not calls else {}),
            **({"tool_calls": calls} if calls else {}),
        }

    def _note_origin(self, event: Any) -> None:
        """Keep the response's id, and the server's name of the model."""
        if self._row.response_id is None and isinstance(event, Mapping):
            sent = [event.get(name) for name in ("id", "model")]
            self._row.response_id, self._row.response_model = (
                value[:MAX_NAME] if isinstance(value, str) and value else None for value in sent
            )

    def _choice(
        self, choice: Mapping[str, Any], event: Mapping[str, Any], elapsed: float
    ) -> Iterator[TextChunk]:
        delta = self._delta_of(choice)
        texts = items(list(text_parts(choice, delta)))
        calls = delta.get("tool_calls")
        if not calls and delta.get("function_call"):  # OpenAI, before tool_calls
            calls = {"function": delta["function_call"]}
        logprobs = logprobs_of(choice.get("logprobs")) if self._logprobs is not None else []
        # Together has the reason of a completion outside its choices, and Gemini another name.
        reasons = (
            choice.get("finish_reason"),
            choice.get("finishReason"),
            event.get("finish_reason"),
        )
        reason = next((each for each in reasons if has_reason(each)), None)
        self.events_seen += bool(texts or calls or logprobs or reason)
        self._reasons_are_early |= bool(self._reason and (texts or calls))
        self._add_size(len(logprobs) * LOGPROB_SIZE)
        if self._logprobs is not None:
            self._logprobs += logprobs
        for field, text in texts:
            self._add_size(PIECE_SIZE + len(text))
            yield from self._text(field, text, elapsed)
        if calls:
            self._add_size(PIECE_SIZE)
            yield from self._held_back(elapsed)
            self._tool_calls.feed(calls)
        if reason is not None and not self.has_enough:
            self._end(reason, choice, has_more=bool(texts or calls))

    def _add_size(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.max_answer_size:
            raise self._limits.exceeded("max_answer_size", "the answer")

    def _delta_of(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is new in a choice."""
        delta: Mapping[str, Any] = choice.get("delta") or {}
        if delta or self._has_delta:
            self._has_delta = True
            return delta
        # The whole answer as one message. After deltas, it repeats them (MiniMax).
        return choice.get("message") or delta

    def _end(self, reason: Any, choice: Mapping[str, Any], *, has_more: bool) -> None:
        found = finish_reason_of(reason)
        # Of vLLM and of our server, or of SGLang. It is an id if a token has ended the sequence.
        sent = choice.get("stop_reason") or choice.get("matched_stop")
        matched = sent if reason == "stop" and isinstance(sent, str) else None
        if matched is not None:
            found = FinishReason.STOP_STRING
        elif found is FinishReason.STOP_STRING and len(self._stop) == 1:
            matched = self._stop[0]
        # Some proxies send a second reason, "stop", also for an answer that the server has cut.
        if has_more or self._reason is None or found is not FinishReason.EOS:
            self._reason, self._row.matched_stop_string = found, matched
        self.ended_with_text = has_more

    def _text(self, field: str, text: str, elapsed: float) -> list[TextChunk]:
        chunks = [] if field == self._field else self._held_back(elapsed)
        self._field = field
        return [*chunks, *self._joined(self._characters.feed(text), elapsed)]

    def _joined(self, text: str, elapsed: float) -> list[TextChunk]:
        """Whole characters of the current field."""
        if self._field == "content":
            return self._content(text, elapsed)
        if not text:
            return []
        self._field_texts.setdefault(self._field, []).append(text)
        return [self._chunk("", elapsed, self._field, text)]

    def _content(self, text: str, elapsed: float) -> list[TextChunk]:
        if self._stop_strings.matched is not None:
            return []
        shown = self._stop_strings.feed(text)
        if self._stop_strings.matched is not None:  # it comes before the server's own reason
            self._row.matched_stop_string = self._stop_strings.matched
            self._reason = FinishReason.STOP_STRING
            self.has_enough = True
        return self._shown(shown, elapsed)

    def _held_back(self, elapsed: float) -> list[TextChunk]:
        """The chunks of text that was held back for more text, when something else has come."""
        chunks = self._joined(self._characters.flush(), elapsed)
        return chunks + self._shown(self._stop_strings.flush(), elapsed)

    def _shown(self, text: str, elapsed: float) -> list[TextChunk]:
        if not text:
            return []
        self._field_texts.setdefault("content", []).append(text)
        field = self._content_field
        return [self._chunk(text, elapsed, field, None if field is None else text)]

    def _chunk(self, text: str, elapsed: float, field: str | None, value: Any) -> TextChunk:
        logprobs = self._logprobs
        if logprobs is not None:
            self._logprobs = []
        return TextChunk(text, logprobs=logprobs, elapsed=elapsed, field=field, value=value)


class _Characters:
    """Joins the halves of characters: in JSON one character can be sent as two."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._is_empty = True

    def feed(self, text: str) -> str:
        if self._is_empty and text.isascii():
            return text
        text = self._decoder.decode(text.encode("utf-16-le", "surrogatepass"))
        self._is_empty = not self._decoder.getstate()[0]
        return text

    def flush(self) -> str:
        if self._is_empty:
            return ""
        self._is_empty = True
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
