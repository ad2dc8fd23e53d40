"""What streaming costs per token, and how late text arrives.

Models of three sizes, with an idle loop and with one that other work keeps busy half of the time,
and eight streams at once, each in its own thread. `per_item.py` describes the ratios; ``silent`` is
``generate()`` in a worker thread with a streamer that does nothing. Latency begins when a streamer
has a part of the text, and for this library at ``put()``, so it includes decoding.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import torch
from anyio import CapacityLimiter, to_thread
from transformers import AsyncTextIteratorStreamer, LlamaForCausalLM, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import anystreamer

from .method import ALL_LOOPS, ON_ASYNCIO, Table
from .models import make_model, make_tokenizer
from .per_item import Run, Ways, compare

# Layers and width, for about 1, 3 and 10 ms per token, and the tokens of a stream.
SIZES = {"small": (2, 128, 400), "middle": (4, 384, 150), "large": (8, 512, 60)}
AT_ONCE = 8


class Silent(BaseStreamer):
    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


def note_puts(run: Run, streamer: Any) -> Any:
    """Note the time at each ``put()`` except the first, which has the prompt."""
    put, is_prompt = streamer.put, True

    def noted(value: Any) -> None:
        nonlocal is_prompt
        if not is_prompt:
            run.sent()
        is_prompt = False
        put(value)

    streamer.put = noted
    return streamer


def note_texts(run: Run, streamer: Any) -> Any:
    """Note the time when one of transformers' streamers hands over text."""
    hand_over = streamer.on_finalized_text

    def noted(text: str, stream_end: bool = False) -> None:
        run.sent()
        hand_over(text, stream_end=stream_end)

    streamer.on_finalized_text = noted
    return streamer


class NotingModel:
    """A model that notes the time at each ``put()`` of the streamer that it gets."""

    def __init__(self, model: LlamaForCausalLM, run: Run) -> None:
        self.generation_config, self.device = model.generation_config, model.device
        self._model, self._run = model, run

    def generate(self, **kwargs: Any) -> Any:
        note_puts(self._run, kwargs["streamer"])
        with self._run:
            return self._model.generate(**kwargs)


@dataclass(frozen=True)
class Bench:
    """A model, and the ways to stream from it."""

    model: LlamaForCausalLM
    tokenizer: Any
    tokens: int

    def _generate(self, run: Run, streamer: Any) -> None:
        input_ids = torch.arange(1, 9)[None]
        with run:
            self.model.generate(input_ids, streamer=streamer, max_new_tokens=self.tokens)

    @asynccontextmanager
    async def _generating(self, run: Run, streamer: Any) -> AsyncIterator[None]:
        """In a thread, as in transformers' documentation."""
        thread = threading.Thread(target=self._generate, args=(run, streamer))
        thread.start()
        yield
        await to_thread.run_sync(thread.join)

    async def silent(self, run: Run) -> None:
        await to_thread.run_sync(self._generate, run, Silent())

    async def ours(self, run: Run) -> None:
        async with anystreamer.stream_text(
            NotingModel(self.model, run),
            self.tokenizer,
            {"input_ids": torch.arange(1, 9)[None]},
            max_new_tokens=self.tokens,
            limiter=CapacityLimiter(1),  # its own, so that it runs at the same time as others
        ) as stream:
            async for chunk in stream:
                run.arrived(len(chunk.token_ids))
        assert len(stream.token_ids) == self.tokens

    async def drop_in(self, run: Run) -> None:
        streamer = anystreamer.AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
        async with self._generating(run, note_puts(run, streamer)):
            async for _ in streamer:
                run.arrived()

    async def theirs_async(self, run: Run) -> None:
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
        async with self._generating(run, note_texts(run, streamer)):
            async for _ in streamer:
                run.arrived()

    async def theirs_sync(self, run: Run) -> None:
        """A thread that only reads the queue, without a loop."""
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)

        def consume() -> None:
            for _ in streamer:
                run.arrived()

        async with self._generating(run, note_texts(run, streamer)):
            await to_thread.run_sync(consume)

    async def theirs_in_threadpool(self, run: Run) -> None:
        """Like Starlette's ``iterate_in_threadpool``."""
        streamer, end = TextIteratorStreamer(self.tokenizer, skip_prompt=True), object()
        async with self._generating(run, note_texts(run, streamer)):
            while await to_thread.run_sync(next, iter(streamer), end) is not end:
                run.arrived()

    @property
    def ways(self) -> Ways:
        return {
            "silent": (self.silent, ("asyncio",)),
            "stream_text": (self.ours, ALL_LOOPS),
            "AsyncTextIteratorStreamer (ours)": (self.drop_in, ALL_LOOPS),
            "AsyncTextIteratorStreamer (transformers')": (self.theirs_async, ON_ASYNCIO),
            "TextIteratorStreamer, a thread": (self.theirs_sync, ("asyncio",)),
            "TextIteratorStreamer, threadpool": (self.theirs_in_threadpool, ALL_LOOPS),
        }


def measure(is_quick: bool) -> Iterator[Table]:
    rounds = 3 if is_quick else 8
    tokenizer = make_tokenizer()
    for size in list(SIZES)[: 2 if is_quick else None]:
        layers, hidden, tokens = SIZES[size]
        bench = Bench(make_model(layers, hidden), tokenizer, tokens // (2 if is_quick else 1))
        for busy, name in ((False, "idle loop"), (True, "loop busy half the time")):
            results = compare(bench.ways, bench.tokens, rounds=rounds, is_busy=busy)
            yield {f"{size} model, {name}": results}
        if size == "small":
            few = Bench(bench.model, tokenizer, bench.tokens // 4)
            results = compare(few.ways, few.tokens, rounds=rounds, streams=AT_ONCE)
            yield {f"{size} model, {AT_ONCE} at once": results}
