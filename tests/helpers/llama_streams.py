"""Streams of one tiny model, and what most tests do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anystreamer import TextChunk, stream_text

from .tiny_models import Say, llama, tokenizer

PROMPT = "Once upon"
CHAT = [{"role": "user", "content": "Hi!"}]

# Long enough that a test which fails to stop it notices, short enough that it does not hang.
ENDLESS: dict[str, Any] = {"max_new_tokens": 900}

Action = Callable[[], object]


def stream_llama(prompt: Any = PROMPT, **kwargs: Any) -> Any:
    return stream_text(llama(), tokenizer(), prompt, **kwargs)


def says(*pieces: str | int) -> dict[str, Any]:
    """Arguments that make a model generate exactly this."""
    say = Say(*pieces)
    return {"logits_processor": [say], "max_new_tokens": len(say.ids)}


def inputs_of(prompt: str) -> dict[str, Any]:
    return dict(tokenizer()(prompt, return_tensors="pt"))


async def collect(context: Any) -> tuple[list[TextChunk], Any]:
    async with context as stream:
        return [chunk async for chunk in stream], stream


async def reason_of(context: Any) -> Any:
    return (await collect(context))[1].finish_reason


async def finished(context: Any) -> Any:
    """A stream that has been read to its end."""
    async with context as stream:
        await stream.read()
        return stream


def raiser(error: BaseException) -> Action:
    def action() -> None:
        raise error

    return action
