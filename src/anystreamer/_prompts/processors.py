"""Chats for a processor: checked, with decoded pictures, in the shape that its template reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._weak_cache import WeakCache
from .media import MediaPart, check_processor, decoded_messages, has_media, media_parts
from .prompts import Prompt, TokenIds, takes_processor_kwargs, tokenizer_of
from .untrusted import with_contents

__all__ = ["check_media", "prompts_for_processor"]

# Whether a template reads contents that are strings, for each processor and template.
_reads_strings: WeakCache[dict[str, bool]] = WeakCache()

_PROBE = "29071834"  # digits, which no template changes
_RATE = 16_000  # of nearly all models that hear


def prompts_for_processor(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt] | Mapping[str, Any],
    chat_template_kwargs: Mapping[str, Any] | None,
    fetched: Mapping[str, bytes] | None,
) -> Sequence[Prompt] | Mapping[str, Any]:
    """The same prompts, as `encode` takes them. In a worker thread.

    Args:
        model: of transformers, or another one.
        tokenizer: or a processor.
        prompts: texts, chats, or model inputs, which stay as they are.
        chat_template_kwargs: of the caller's.
        fetched: the files of pictures and recordings that have addresses.

    Raises:
        ValueError: a picture or a recording cannot be decoded, or is not for this model.
        ImportError: a package that decodes it is not installed.
    """
    text_tokenizer = tokenizer_of(tokenizer)
    if isinstance(prompts, Mapping) or (
        tokenizer is text_tokenizer and not any(map(has_media, prompts))
    ):
        return prompts
    settings = chat_template_kwargs or {}
    return [
        _prepared(model, tokenizer, text_tokenizer, each, settings, fetched) for each in prompts
    ]


def check_media(model: Any, tokenizer: Any, kind: str, place: str) -> None:
    """Refuse media that a model does not take, before there is a message with them.

    Args:
        model: of transformers, or another one.
        tokenizer: or a processor.
        kind: ``"image"``, ``"audio"`` or ``"video"``.
        place: where it would be, for the message.

    Raises:
        ValueError: what to pass instead.
    """
    check_processor(model, tokenizer, tokenizer_of(tokenizer), MediaPart(kind, place, {}))


def _prepared(
    model: Any,
    tokenizer: Any,
    text_tokenizer: Any,
    prompt: Any,
    settings: Mapping[str, Any],
    fetched: Mapping[str, bytes] | None,
) -> Prompt:
    if isinstance(prompt, str | TokenIds | Mapping):
        return prompt
    for part in media_parts(prompt):
        check_processor(model, tokenizer, text_tokenizer, part)
    if has_media(prompt):
        decoded: Prompt = decoded_messages(
            prompt, _sampling_rate(tokenizer, settings), fetched or {}
        )
        prompt = decoded
    if tokenizer is not text_tokenizer and not _reads_text(tokenizer, settings):
        prompt = with_contents(prompt, _in_parts)
    checked: Prompt = prompt
    return checked


def _sampling_rate(processor: Any, settings: Mapping[str, Any]) -> int:
    extractors = (
        getattr(processor, each, None) for each in ("feature_extractor", "audio_processor")
    )
    known = (getattr(each, "sampling_rate", None) for each in extractors if each is not None)
    return int(settings.get("sampling_rate") or next(filter(None, known), _RATE))


def _reads_text(processor: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the template reads a content that is a string.

    Some templates (LLaVA's, Qwen2-Audio's) only look for parts, and a string that others send would
    be lost without an error.
    """
    template = str(settings.get("chat_template") or getattr(processor, "chat_template", None))
    known = _reads_strings.get(processor, dict)
    if template not in known:
        own = {"chat_template": settings["chat_template"]} if "chat_template" in settings else {}
        in_parts = [{"type": "text", "text": _PROBE}]
        known[template] = not _shows(processor, in_parts, own) or (
            # transformers 5.0 fails at a string when a processor encodes it.
            takes_processor_kwargs(processor) and _shows(processor, _PROBE, own)
        )
    return known[template]


def _shows(processor: Any, content: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a content is in what the template makes of it."""
    messages = [{"role": "user", "content": content}]
    try:
        return _PROBE in processor.apply_chat_template(messages, tokenize=False, **settings)
    except Exception:  # templates raise what they like
        return False


def _in_parts(_: int, content: Any) -> Any:
    """A content as parts, if it is a string."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
