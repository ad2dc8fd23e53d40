"""What a server answers: from events of OpenAI's API to pieces of text, and how it ended. Pure."""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._streams import FinishReason, Row, TextChunk, Usage
from .._text import StopStrings

__all__ = ["InvalidEvent", "RemoteRow", "ResponseParser", "ServerError"]

DONE = b"[DONE]"

# Under which names servers tell what is no answer, and the field that it becomes: the one that the
# templates of transformers have.
FIELDS = {
    "reasoning_content": "reasoning_content",
    "reasoning": "reasoning_content",
    "refusal": "refusal",
}

# OpenAI's finish reasons, and those that TGI and vLLM have beside them.
REASONS = {
    "stop": FinishReason.EOS,
    "eos_token": FinishReason.EOS,
    "stop_sequence": FinishReason.STOP_STRING,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.EOS,
    "function_call": FinishReason.EOS,
    "content_filter": FinishReason.CRITERIA,
    "repetition": FinishReason.CRITERIA,
}


class InvalidEvent(Exception):
    """An event that is not what OpenAI's API says."""


class ServerError(Exception):
    """An error that the server tells, in the place of an answer or in the midst of one."""

    def __init__(self, error: Any) -> None:
        message = error.get("message") if isinstance(error, Mapping) else error
        super().__init__(str(message or "the server says that it failed, and not why"))
        self.error = error


@dataclass(slots=True)
class RemoteRow(Row):
    """A sequence that is made elsewhere: its tokens have no ids here, and a server counts them."""

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
    """One answer: events go in, pieces of its text and of its fields come out.

    Stop strings are looked for here as well: some servers leave them in the text.
    """

    def __init__(
        self, row: RemoteRow, stop: Sequence[str], *, logprobs: bool, names_content: bool
    ) -> None:
        self.ended: FinishReason | None = None  #: as the server says, or a stop string found here
        self.is_done = False  #: the server has no more to say
        self.has_enough = False  #: a stop string was found here
        self.events_seen = 0  #: events that said something
        self._row = row
        self._stop = stop
        self._stop_strings = StopStrings(stop)
        self._characters = _Characters()
        self._logprobs: list[float] | None = [] if logprobs else None  # of no piece as yet
        self._content_field = "content" if names_content else None
        self._said: dict[str, list[str]] = {}  # by field
        self._calls: list[Any] = []  # that are complete
        self._call: dict[str, Any] | None = None  # that is being told

    def feed(self, data: bytes, elapsed: float) -> Iterator[TextChunk]:
        """Take the data of an event, and give its pieces: also those before what it fails with.

        Raises:
            Malformed, Told
        """
        if data == DONE:
            self.is_done = True
            return
        try:
            event = json.loads(data)
            if event.get("error") or event.get("object") == "error":
                raise ServerError(event.get("error") or event)
            if usage := event.get("usage"):
                self._count(usage)
            for choice in event.get("choices") or ():
                yield from self._choice(choice, elapsed)
                # "" of TGI, while there is more to come.
                if (reason := choice.get("finish_reason")) and self.ended is None:
                    self._end(reason, choice)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            said = data[:200].decode(errors="replace")
            raise InvalidEvent(
                f"the server sent an event that is none of OpenAI's: {said}"
            ) from exc

    def finish(self, elapsed: float) -> list[TextChunk]:
        """Return what was held back: the answer has ended, or was cut off."""
        chunks = self._held_back(elapsed)
        if self.ended not in (None, FinishReason.LENGTH):
            chunks += self._end_call(elapsed)  # of one that was cut arguments may be missing
        return chunks

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a chat message to append to the conversation."""
        said = {field: "".join(texts) for field, texts in self._said.items()}
        calls = [call for call in self._calls if not isinstance(call, str)]
        content = said.pop("content", "")
        return {
            "role": "assistant",
            **said,
            **({"content": content} if content or not calls else {}),
            **({"tool_calls": calls} if calls else {}),
        }

    def _count(self, usage: Mapping[str, Any]) -> None:
        prompt, completion = usage["prompt_tokens"], usage.get("completion_tokens") or 0
        self._row.server_usage = Usage(int(prompt), int(completion), int(completion))

    def _choice(self, choice: Mapping[str, Any], elapsed: float) -> list[TextChunk]:
        chunks: list[TextChunk] = []
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        logprobs = _logprobs(choice.get("logprobs")) if self._logprobs is not None else []
        others = {FIELDS[name]: delta[name] for name in reversed(FIELDS) if delta.get(name)}
        calls = delta.get("tool_calls") or ()
        self.events_seen += bool(text or others or calls or logprobs or choice.get("finish_reason"))
        if self._logprobs is not None:
            self._logprobs += logprobs
        for field, said in others.items():
            chunks += [*self._held_back(elapsed), self._piece(field, said, elapsed)]
        if text:
            chunks += self._content(self._characters.feed(text), elapsed)
        for part in calls:
            chunks += [*self._held_back(elapsed), *self._call_part(part, elapsed)]
        return chunks

    def _end(self, reason: str, choice: Mapping[str, Any]) -> None:
        if reason not in REASONS:
            raise ServerError(f"the server ended its answer with finish_reason={reason!r}")
        self.ended = REASONS[reason]
        # Which one it was, in the words of vLLM (and ours), or SGLang. Ids end a sequence there.
        matched = choice.get("stop_reason") or choice.get("matched_stop")
        if reason == "stop" and isinstance(matched, str):
            self.ended = FinishReason.STOP_STRING
            self._row.matched_stop_string = matched
        elif self.ended is FinishReason.STOP_STRING and len(self._stop) == 1:
            self._row.matched_stop_string = self._stop[0]

    def _content(self, text: str, elapsed: float) -> list[TextChunk]:
        if self._stop_strings.matched is not None:
            return []
        shown = self._stop_strings.feed(text)
        if self._stop_strings.matched is not None:  # it comes before all that the server says
            self._row.matched_stop_string = self._stop_strings.matched
            self.ended = FinishReason.STOP_STRING
            self.has_enough = True
        return self._shown(shown, elapsed)

    def _held_back(self, elapsed: float) -> list[TextChunk]:
        """What more of the answer's text would have been waited for."""
        chunks = self._content(self._characters.flush(), elapsed)
        return chunks + self._shown(self._stop_strings.flush(), elapsed)

    def _shown(self, text: str, elapsed: float) -> list[TextChunk]:
        if not text:
            return []
        self._said.setdefault("content", []).append(text)
        field = self._content_field
        return [self._chunk(text, elapsed, field, None if field is None else text)]

    def _piece(self, field: str, text: str, elapsed: float) -> TextChunk:
        self._said.setdefault(field, []).append(text)
        return self._chunk("", elapsed, field, text)

    def _chunk(self, text: str, elapsed: float, field: str | None, value: Any) -> TextChunk:
        logprobs = self._logprobs
        if logprobs is not None:
            self._logprobs = []
        return TextChunk(text, logprobs=logprobs, elapsed=elapsed, field=field, value=value)

    def _call_part(self, part: Mapping[str, Any], elapsed: float) -> list[TextChunk]:
        """A part of a tool call: its name comes first, and then its arguments in pieces."""
        chunks: list[TextChunk] = []
        index, function = part.get("index", 0), part.get("function") or {}
        id, name = part.get("id"), function.get("name")
        call = self._call
        # Some servers number all of them 0. And some have a new id for each part, but no name.
        if call is not None and (
            call["index"] != index or (name and id and call["id"] not in (None, id))
        ):
            chunks = self._end_call(elapsed)
        if self._call is None:
            self._call = {"index": index, "id": None, "name": None, "arguments": []}
        self._call["id"] = self._call["id"] or id
        self._call["name"] = self._call["name"] or name
        self._call["arguments"].append(function.get("arguments") or "")
        return chunks

    def _end_call(self, elapsed: float) -> list[TextChunk]:
        call, self._call = self._call, None
        if call is None:
            return []
        text = "".join(call["arguments"])
        value: Any = text  # malformed: it is told as the text that it is
        with contextlib.suppress(ValueError):
            function = {"name": call["name"], "arguments": json.loads(text or "{}")}
            value = {"type": "function", "function": function}
            if call["id"] is not None:
                value = {"id": call["id"], **value}
        self._calls.append(value)
        chunk = self._chunk("", elapsed, "tool_calls", value)
        chunk.is_complete_value = True
        return [chunk]


class _Characters:
    """Puts characters together that were cut in two: JSON can send one as two halves."""

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


def _logprobs(told: Any) -> list[float]:
    """The log-probabilities of a choice's tokens: a chat tells them in another form."""
    if not told:
        return []
    if (content := told.get("content")) is not None:
        return [float(token["logprob"]) for token in content]
    # The first token of a prompt that is told as well has none.
    return [float(each) for each in told.get("token_logprobs") or () if each is not None]
