"""What streaming costs per token, and how late text arrives.

Models of three sizes, with an idle loop and with one that other work keeps busy half of the time,
eight streams at once, each in its own thread, and other budgets of crossings. `per_item.py`
describes the ratios; ``silent`` is ``generate()`` in a worker thread with a streamer that does
nothing. Latency begins when a streamer has a part of the text, and for this library at ``put()``,
so it includes decoding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterable, Awaitable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from anyio import CapacityLimiter, to_thread
from starlette.concurrency import iterate_in_threadpool
from transformers import AsyncTextIteratorStreamer, TextIteratorStreamer

import anystreamer
from anystreamer._bridge import delivery

from .method import ALL_LOOPS, ON_ASYNCIO, Parts
from .models import Silent, make_model, make_tokenizer
from .per_item import Run, Way, Ways, compare_ways

# Layers and width, for about 1, 3 and 10 ms per token, and the tokens of a stream.
SIZES = {"small": (2, 128, 400), "middle": (4, 384, 150), "large": (8, 512, 60)}
AT_ONCE = 8
CAPS = (0, 1, 2)  # ms
PROMPT = torch.arange(1, 9)[None]


def note(run: Run, streamer: Any, method: str, *, has_prompt: bool = False) -> Any:
    """Note the time at each call of a method, except that with the prompt."""
    original, calls = getattr(streamer, method), 0

    def noted(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        if calls or not has_prompt:
            run.sent()
        calls += 1
        original(*args, **kwargs)

    setattr(streamer, method, noted)
    return streamer


note_puts = partial(note, method="put", has_prompt=True)
note_texts = partial(note, method="on_finalized_text")  # of transformers' streamers


class NotingModel:
    """A model that notes the time at each ``put()`` of the streamer that it gets."""

    def __init__(self, model: Any, run: Run) -> None:
        self.generation_config, self.device = model.generation_config, model.device
        self._model, self._run = model, run

    def generate(self, **kwargs: Any) -> Any:
        note_puts(self._run, kwargs["streamer"])
        with self._run:
            return self._model.generate(**kwargs)


async def read(run: Run, texts: AsyncIterable[str]) -> None:
    async for _ in texts:
        run.arrived()


@dataclass(frozen=True)
class Bench:
    """A model, and the ways to stream from it."""

    model: Any
    tokenizer: Any

    def _generate(self, run: Run, streamer: Any) -> None:
        with run:
            self.model.generate(PROMPT, streamer=streamer, max_new_tokens=run.count)

    async def _stream(self, run: Run, streamer: Any, reading: Awaitable[None]) -> None:
        """Generate in a thread, as in transformers' documentation."""
        thread = threading.Thread(target=self._generate, args=(run, streamer))
        thread.start()
        await reading
        await to_thread.run_sync(thread.join)

    async def silent(self, run: Run) -> None:
        await to_thread.run_sync(self._generate, run, Silent())

    async def ours(self, run: Run) -> None:
        async with anystreamer.stream_text(
            NotingModel(self.model, run),
            self.tokenizer,
            {"input_ids": PROMPT},
            max_new_tokens=run.count,
            limiter=CapacityLimiter(1),  # its own, so that it runs at the same time as others
        ) as stream:
            async for chunk in stream:
                run.arrived(len(chunk.token_ids))
        assert len(stream.token_ids) == run.count

    async def drop_in(self, run: Run) -> None:
        streamer = anystreamer.AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
        await self._stream(run, note_puts(run, streamer), read(run, streamer))

    async def theirs_async(self, run: Run) -> None:
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
        await self._stream(run, note_texts(run, streamer), read(run, streamer))

    async def theirs_sync(self, run: Run) -> None:
        """A thread that only reads the queue, without a loop."""
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)

        def consume() -> None:
            for _ in streamer:
                run.arrived()

        await self._stream(run, note_texts(run, streamer), to_thread.run_sync(consume))

    async def theirs_in_threadpool(self, run: Run) -> None:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)
        reading = read(run, iterate_in_threadpool(streamer))
        await self._stream(run, note_texts(run, streamer), reading)

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

    @property
    def budgets(self) -> Ways:
        """Other budgets of crossings: how long items wait for the next one."""
        theirs = ("silent", "AsyncTextIteratorStreamer (transformers')")
        ways = {name: self.ways[name] for name in theirs}
        for cap in CAPS:
            for name in ("stream_text", "AsyncTextIteratorStreamer (ours)"):
                way, _ = self.ways[name]
                ways[f"{name}, {cap} ms"] = (with_cap(way, cap / 1e3), ("asyncio",))
        return ways


def with_cap(way: Way, cap: float) -> Way:
    """The same, where items wait for *cap* seconds at most, however much crossings cost."""

    async def capped(run: Run) -> None:
        with patch.multiple(delivery, CROSSING_CAP=cap, CROSSING_SHARE_AT_MOST=math.inf):
            await way(run)

    return capped


def measure(is_quick: bool) -> Parts:
    rounds, part = (3, 2) if is_quick else (8, 1)
    for size in list(SIZES)[: 2 if is_quick else None]:
        layers, hidden, tokens = SIZES[size]
        bench, tokens = Bench(make_model(layers, hidden), make_tokenizer()), tokens // part
        ways = bench.ways
        for busy, name in ((False, "idle loop"), (True, "loop busy half the time")):
            results = compare_ways(ways, tokens, rounds=rounds, is_busy=busy)
            yield f"{size} model, {name}", results
        if size == "small":
            results = compare_ways(ways, tokens // 4, rounds=rounds, streams=AT_ONCE)
            yield f"{size} model, {AT_ONCE} at once", results
            results = compare_ways(bench.budgets, tokens, rounds=rounds)
            yield f"{size} model, other budgets", results
