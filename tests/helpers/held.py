"""Streams in async generators, as web frameworks make people write them."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from anyio import create_task_group

from anystreamer import Engine

__all__ = ["Held", "close", "each_way_to_let_go", "let_go"]


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
    """Older anyio wants a coroutine function, which a generator's ``aclose`` is not."""
    await tokens.aclose()


each_way_to_let_go = pytest.mark.parametrize(
    "way", ["dropped", "closed", "closed by another task", "thrown into"]
)


async def let_go(generators: list[AsyncGenerator[str, None]], way: str) -> None:
    """End the last of these generators, to which nothing else refers."""
    tokens = generators.pop()
    match way:
        case "dropped":
            del tokens
            gc.collect()
        case "closed":
            await tokens.aclose()
        case "closed by another task":
            async with create_task_group() as tasks:
                tasks.start_soon(close, tokens)
        case "thrown into":
            with pytest.raises(KeyError):
                await tokens.athrow(KeyError())
