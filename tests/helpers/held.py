"""Streams in async generators, as web frameworks make people write them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from anystreamer import Engine

__all__ = ["Held", "close"]


class Held:
    """Answers to one prompt. It keeps the streams, and whoever calls `tokens` the generators."""

    def __init__(self, engine: Engine, prompt: str = "hi", **arguments: Any) -> None:
        self.engine = engine
        self.prompt = prompt
        self.arguments = arguments
        self.streams: list[Any] = []

    async def tokens(self) -> AsyncGenerator[str, None]:
        async with self.engine.stream_text(self.prompt, **self.arguments) as stream:
            self.streams.append(stream)
            async for piece in stream:
                yield piece


async def close(tokens: AsyncGenerator[str, None]) -> None:
    """Older anyio wants a coroutine function: a generator's ``aclose`` is none."""
    await tokens.aclose()
