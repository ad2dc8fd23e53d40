"""Reads text, token counts, finish reasons and errors, in the shapes of many servers. Pure.

Servers differ in how they implement OpenAI's API. Comments name a server that sends a shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._reporting import SafeLogger
from .._streams import FinishReason, Usage
from ._limits import MAX_ITEMS, LimitExceeded

__all__ = [
    "MAX_MESSAGE",
    "ServerError",
    "choices_of",
    "error_in",
    "error_message",
    "finish_reason_of",
    "has_reason",
    "items",
    "logprobs_of",
    "text_parts",
    "usage_in",
]

logger = SafeLogger()


class ServerError(Exception):
    """The server reports an error, in place of an answer or in the middle of one."""

    def __init__(self, error: Any) -> None:
        message = error_message(error)
        super().__init__(message or "the server reports that it failed, without a reason")
        self.error = error


def items(sent: Any) -> Sequence[Any]:
    """The entries of a list, or of null, which has none.

    Raises:
        LimitExceeded: there are too many. Each entry takes time.
        TypeError: it is not a list.
    """
    if sent is None:
        return ()
    if not isinstance(sent, list):
        raise TypeError(f"must be a list, got {sent!r:.60}")
    if len(sent) > MAX_ITEMS:
        raise LimitExceeded(f"an event of the answer has a list of more than {MAX_ITEMS} entries")
    return sent


# -- errors

# Where errors have their message. For some servers, the message is another error.
_MESSAGE_NAMES = (
    "message",
    "detail",
    "details",  # the gateway of fms-guardrails
    "text",
    "error",
    "error_msg",  # Baidu
    "status_msg",  # MiniMax
    "msg",
)
# A longer message is cut (characters).
MAX_MESSAGE = 4000
# Codes that mean success. Some servers send a code in each event.
_NO_ERROR = ("", "0", "200", "none", "ok", "success")


def error_message(error: Any) -> str:
    """The message of an error; empty if it has none."""
    if not isinstance(error, Mapping):
        return "" if isinstance(error, bool) else str(error)[:MAX_MESSAGE]
    inner = next((error[name] for name in _MESSAGE_NAMES if error.get(name)), "")
    return error_message(inner) or ("" if inner is True else str(inner)[:MAX_MESSAGE])


def error_in(event: Mapping[str, Any]) -> Any:
    """The error that an event reports; None if it reports none."""
    if error := event.get("error"):
        return event if error is True else error
    is_error = "error" in (event.get("object"), event.get("type"))  # vLLM before 0.10, SGLang
    if is_error or event.get("error_code"):  # FastChat
        return event
    if event.get("choices") is None:
        return _error_without_choices(event)
    return next(filter(None, (choice.get("error") for choice in choices_of(event))), None)


def _error_without_choices(event: Mapping[str, Any]) -> Any:
    if event.get("detail"):  # FastAPI
        return event
    status = event.get("base_resp")  # MiniMax
    if isinstance(status, Mapping) and _is_failure(status.get("status_code")):
        return status
    # DashScope, Spark
    is_failure = _is_failure(event.get("code")) and isinstance(event.get("message"), str)
    return event if is_failure else None


def _is_failure(code: Any) -> bool:
    return str(code).lower() not in _NO_ERROR


# -- choices


def choices_of(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The choices of an event; some servers send empty ones."""
    return [choice for choice in items(event.get("choices")) if choice]


# -- text

# Text that is not the answer: the field that it becomes, named as in transformers' templates, and
# its names on servers. Some servers send the same text under several names; the first one counts.
_FIELD_NAMES = {
    "reasoning_content": ("reasoning_content", "reasoning", "reasoning_text", "thinking"),
    "refusal": ("refusal",),
}
# The same for the parts of a list (Mistral).
_PART_FIELDS = {
    "thinking": "reasoning_content",
    "reasoning": "reasoning_content",
    "refusal": "refusal",
}
_PART_NAMES = ("text", "thinking", "reasoning", "refusal", "content", "value")


def text_parts(choice: Mapping[str, Any], delta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a choice, each with its field."""
    for field, names in _FIELD_NAMES.items():
        value = next((delta[name] for name in names if delta.get(name)), None)
        yield from _parts(value, field)
    yield from _parts(choice.get("text") or delta.get("content"), "content")


def _parts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    match value:
        case None | "":
            pass
        case str():
            yield field, value
        case Mapping():  # an image or a reference has no text
            field = _PART_FIELDS.get(value.get("type", ""), field)
            text = next((value[name] for name in _PART_NAMES if value.get(name)), None)
            yield from _parts(text, field)
        case list():
            for part in items(value):
                yield from _parts(part, field)
        case _:
            raise TypeError(f"{field} must be text, got {value!r:.60}")


# -- log-probabilities


def logprobs_of(sent: Any) -> list[float]:
    """The log-probabilities of a choice's tokens, from the form of a chat or of a completion."""
    if isinstance(sent, int | float):  # Together
        return [float(sent)]
    if not sent:
        return []
    tokens = [*(sent.get("content") or ()), *(sent.get("refusal") or ())]
    values = [token.get("logprob") for token in tokens] or sent.get("token_logprobs") or ()
    # The first token of a prompt that is sent back has none.
    return [float(each) for each in values if each is not None]


# -- usage

# Larger counts are a mistake, and Python cannot convert an integer of any size to a float.
MAX_TOKENS = 2**53


def usage_in(event: Mapping[str, Any]) -> tuple[bool, Usage | None]:
    """Whether an event has token counts, and what they are: None if not all are known."""
    places = [
        event.get("usage"),
        (event.get("x_groq") or {}).get("usage"),
        *(choice.get("usage") for choice in choices_of(event)),  # Moonshot
    ]
    usage = next((each for each in places if each), None)
    counts = _usage(usage)
    if counts is not None and not (counts.prompt_tokens or counts.completion_tokens):
        return False, None  # Ollama, in each event before the counts are known
    return usage is not None, counts


def _usage(sent: Any) -> Usage | None:
    if not isinstance(sent, Mapping):
        return None
    prompt = _count(sent, "prompt_tokens", "input_tokens")
    completion = _count(sent, "completion_tokens", "output_tokens")
    total = _count(sent, "total_tokens")
    if total is not None and completion is None and prompt is not None:
        completion = total - prompt
    elif total is not None and prompt is None and completion is not None:
        prompt = total - completion
    if prompt is None or completion is None or prompt < 0 or completion < 0:
        return None
    if max(prompt, completion) > MAX_TOKENS:
        return None
    return Usage(prompt, completion, completion, _cached(sent, prompt))


def _cached(sent: Mapping[str, Any], prompt: int) -> int:
    """How many tokens of a prompt the server had in its cache. Most servers do not send it."""
    details = sent.get("prompt_tokens_details") or sent.get("input_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else None
    if cached is None:
        cached = _count(sent, "prompt_cache_hit_tokens", "cached_tokens")  # DeepSeek; Moonshot
    return min(max(cached or 0, 0), prompt)


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        if (value := usage.get(name)) is not None:
            try:
                return int(value)
            except (TypeError, ValueError, OverflowError):
                return None
    return None


# -- finish reasons

# OpenAI's, and those of others. In lower case: Gemini and Cohere use capitals.
_REASONS = {
    "stop_sequence": FinishReason.STOP_STRING,  # TGI, Anthropic, Cohere
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,  # Anthropic, Cohere, Gemini
    "max_output_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,  # Mistral
    "model_context_window_exceeded": FinishReason.LENGTH,  # Anthropic, Zhipu
    "content_filter": FinishReason.CRITERIA,
    "repetition": FinishReason.CRITERIA,  # vLLM
    "safety": FinishReason.CRITERIA,  # Gemini, and the next three
    "recitation": FinishReason.CRITERIA,
    "blocklist": FinishReason.CRITERIA,
    "prohibited_content": FinishReason.CRITERIA,
    "sensitive": FinishReason.CRITERIA,  # Zhipu
    "refusal": FinishReason.CRITERIA,  # Anthropic
    "guardrail_intervened": FinishReason.CRITERIA,  # Bedrock
    "error_toxic": FinishReason.CRITERIA,  # Cohere
}
# The model has ended its answer by itself. A word that is not known counts as one of these: an
# answer that has a reason to end is complete.
_MODEL_ENDED = (
    "stop",
    "eos",  # Together
    "eos_token",  # TGI
    "end_turn",  # Anthropic
    "complete",  # Cohere
    "tool_calls",
    "tool_use",  # Anthropic
    "function_call",
)
# The answer is not complete.
_FAILURES = (
    "abort",  # vLLM, SGLang
    "aborted",
    "error",  # Mistral, OpenRouter, vLLM
    "failed",
    "cancelled",  # TensorRT-LLM
    "canceled",
    "timeout",
    "insufficient_system_resource",  # DeepSeek
    "network_error",  # Zhipu
    "malformed_function_call",  # Gemini
    "unexpected_tool_call",
)
# There is more to come: TGI and Ollama, DashScope, TensorRT-LLM, Gemini.
_NO_REASON = ("", "null", "none", "not_finished", "finish_reason_unspecified")


def _reason_name(word: Any) -> str:
    if isinstance(word, Mapping):  # older SGLang
        word = word.get("type")
    return str(word).lower()


def has_reason(word: Any) -> bool:
    """Whether a word is a finish reason, and does not stand for "not yet"."""
    return bool(word) and _reason_name(word) not in _NO_REASON


def finish_reason_of(word: Any) -> FinishReason:
    """Translate a server's finish reason. Raises ServerError if the answer is not complete."""
    name = _reason_name(word)
    if name in _FAILURES:
        raise ServerError(f"the server ended its answer with finish_reason={word!r:.200}")
    if name not in _REASONS and name not in _MODEL_ENDED:
        logger.debug("a server's finish_reason %r is not known: it counts as 'stop'", word)
    return _REASONS.get(name, FinishReason.EOS)
