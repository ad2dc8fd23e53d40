"""The values that a stream of text is made of: chunks, finish reasons, usage, timing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .._text import AnswerForm, ResponseParser
from .delivered_text import DeliveredText

__all__ = ["FinishReason", "Logprob", "Row", "TextChunk", "Timing", "Usage"]

# The log-probability of a token; then the ids and log-probabilities of the likeliest tokens in its
# place.
Logprob = tuple[float, tuple[tuple[int, float], ...]]


class FinishReason(StrEnum):
    """Why a generation ended."""

    EOS = "eos"  #: the model made an end-of-sequence token
    STOP_STRING = "stop_string"  #: a stop string was completed
    LENGTH = "length"  #: ``max_new_tokens`` or ``max_length`` was reached
    TIME = "time"  #: ``max_time`` of ``generate()`` was reached
    CRITERIA = "criteria"  #: a ``StoppingCriteria`` of the caller stopped it
    TIMEOUT = "timeout"  #: it took longer than ``timeout=`` allows
    STOPPED = "stopped"  #: `TextStream.stop` was called
    CANCELLED = "cancelled"  #: by a scope, ``aclose()``, or leaving the block
    ERROR = "error"  #: ``generate()`` raised

    @property
    def openai(self) -> str | None:
        """The ``finish_reason`` of OpenAI's API: ``"stop"``, ``"length"`` or None."""
        if self in (FinishReason.EOS, FinishReason.STOP_STRING, FinishReason.CRITERIA):
            return "stop"
        return "length" if self in (FinishReason.LENGTH, FinishReason.TIME) else None


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens. Tokens that were computed and not delivered came after a stop."""

    prompt_tokens: int  #: of the prompt
    completion_tokens: int  #: delivered to the consumer
    computed_tokens: int  #: made by the model
    #: of the prompt, taken from the cache of an earlier request and not computed again
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds since the call; None for an event that did not happen."""

    queued: float | None  #: until the model was free
    first_token: float | None  #: until the first token was made
    total: float  #: until the worker thread had left ``generate()``


class TextChunk(str):
    """A chunk of generated text, with the tokens that it was made of.

    It is a `str`, and never empty, with one exception: with ``parse_response`` the text is the
    answer only. A chunk of another field is then an empty string with a `field` and a `value`.

    It works wherever a `str` works: ``json.dumps`` writes it as text; ``pickle`` and ``copy`` keep
    its attributes. Serializers that compare the exact type, such as msgspec and PyYAML, refuse it:
    give them ``str(chunk)``, which is a plain `str` (msgspec also takes ``enc_hook=str``).
    """

    __slots__ = (
        "elapsed",
        "field",
        "is_complete_value",
        "logprobs",
        "row",
        "token_ids",
        "top_logprobs",
        "value",
    )

    #: the ids of this text's tokens, and of tokens before it that have no text of their own
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None  #: one for each token id; None without ``logprobs``
    #: for each token id, the ids and log-probabilities of the ``top_logprobs`` likeliest tokens in
    #: its place, the likeliest first; None without ``logprobs``
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None
    #: the row of a batch, from 0
    row: int
    elapsed: float  #: seconds from the call until the last of these tokens was made
    field: str | None  #: of the response template (``content``, ...); None without one
    #: the content of that field: a part of its text, or a complete value, such as a tool call. A
    #: malformed value is delivered as its text, a str.
    value: Any
    #: whether `value` is a complete value, such as a tool call, and not a part of a field's text
    is_complete_value: bool

    def __new__(
        cls,
        text: str = "",
        token_ids: Iterable[int] = (),
        *,
        logprobs: Iterable[float] | None = None,
        top_logprobs: Iterable[tuple[tuple[int, float], ...]] | None = None,
        row: int = 0,
        elapsed: float = 0.0,
        field: str | None = None,
        value: Any = None,
    ) -> TextChunk:
        chunk = super().__new__(cls, text)
        chunk.token_ids = tuple(token_ids)
        chunk.logprobs = None if logprobs is None else tuple(logprobs)
        chunk.top_logprobs = None if top_logprobs is None else tuple(top_logprobs)
        chunk.row = row
        chunk.elapsed = elapsed
        chunk.field = field
        chunk.value = value
        chunk.is_complete_value = False
        return chunk

    @classmethod
    def joined(cls, chunks: Sequence[TextChunk]) -> TextChunk:
        """Join chunks of the same row, and of the same field if they have one."""
        if len(chunks) == 1:
            return chunks[0]
        last = chunks[-1]
        return cls(
            "".join(chunks),
            (token_id for chunk in chunks for token_id in chunk.token_ids),
            logprobs=None
            if last.logprobs is None
            else (logprob for chunk in chunks for logprob in chunk.logprobs or ()),
            top_logprobs=None
            if last.top_logprobs is None
            else (top for chunk in chunks for top in chunk.top_logprobs or ()),
            row=last.row,
            elapsed=last.elapsed,
            field=last.field,
            value=None if last.field is None else "".join(chunk.value for chunk in chunks),
        )


@dataclass(slots=True)
class Row:
    """One sequence of a generation. The worker writes the first fields, the loop the others.

    Other threads can read all of them.
    """

    prompt_token_ids: list[int] = field(default_factory=list)
    computed_tokens: int = 0
    cached_tokens: int = 0  # of the prompt
    model_finish_reason: FinishReason | None = None  # None until the model has ended it by itself
    matched_stop_string: str | None = None  # the stop string that ended it
    stop_requested: bool = False  # by any thread: `BatchStream.stop`
    response: ResponseParser | None = None  # with parse_response; the worker's until it has exited
    form: AnswerForm | None = None  # with response_format
    is_form_complete: bool = False  # all that the model made is a whole text of that form
    response_id: str | None = None  # of another server that makes it
    response_model: str | None = None  # the name that it has there for its model
    continues_prompt: bool = False  # its text continues the prompt's text

    delivered_text: DeliveredText = field(default_factory=DeliveredText)
    token_ids: list[int] = field(default_factory=list)
    textless_end: TextChunk | None = None  # tokens after the last text, which no chunk delivers
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    _parsed: list[Any] = field(default_factory=list)  # once it was asked for

    @property
    def text(self) -> str:
        """All the text delivered so far."""
        return str(self.delivered_text)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, once it is known that a stop string ended it."""
        return self.matched_stop_string if self.finish_reason is FinishReason.STOP_STRING else None

    @property
    def message(self) -> dict[str, Any] | None:
        """The message that `ResponseParser` made of it, once it has ended."""
        if self.response is None or self.finish_reason is None:
            return None
        return self.response.message

    @property
    def parsed(self) -> Any:
        """What the form makes of the text, once it has ended; None if it was cut or has calls."""
        is_whole = self.finish_reason is not None and (
            self.finish_reason is self.model_finish_reason and self.is_form_complete
        )
        if self.form is None or not is_whole or (self.message or {}).get("tool_calls"):
            return None
        if not self._parsed:
            self._parsed.append(self.form.parse(self.text))
        return self._parsed[0]

    @property
    def has_fields(self) -> bool:
        """Whether its chunks can be of different fields."""
        return self.response is not None

    def compute_usage(self) -> Usage | None:
        """Count its tokens, once it has ended; None if another server made it and did not say."""
        return Usage(
            prompt_tokens=len(self.prompt_token_ids),
            completion_tokens=len(self.token_ids),
            computed_tokens=self.computed_tokens,
            cached_tokens=self.cached_tokens,
        )
