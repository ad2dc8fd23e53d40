"""What streaming costs per token, and how late text arrives.

    python benchmarks/overhead.py [--quick] [--out benchmarks/results/overhead.json]

Models of three sizes, with one of torch's threads; a loop that idles, and one that other work
keeps busy half the time; and eight streams at once, each in a thread of its own. Ratios as
per_item.py says, to ``generate()`` in a worker thread with a streamer that does nothing. Latency is
counted from the moment that a streamer has a piece of text; for this library from ``put()`` on,
decoding included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from anyio import CapacityLimiter, to_thread
from common import LOOPS, Table, environment, options_of, write
from models import TORCH_THREADS, make_model, make_tokenizer
from per_item import Run, Ways, compare
from tables import show
from transformers import AsyncTextIteratorStreamer, LlamaForCausalLM, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import anystreamer

# Layers and width: about 1, 3 and 10 ms per token. And how many tokens are measured.
SIZES = {"small": (2, 128, 400), "middle": (4, 384, 150), "large": (8, 512, 60)}
AT_ONCE = 8

ALL = tuple(LOOPS)
ON_ASYNCIO = ("asyncio", "uvloop")


class Silent(BaseStreamer):
    """Does nothing."""

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


class Stamped:
    """A model whose streamer's ``put()`` is stamped with the time, for streamers made inside."""

    def __init__(self, model: LlamaForCausalLM, run: Run) -> None:
        self.generation_config = model.generation_config
        self.device = model.device
        self._model, self._run = model, run

    def generate(self, **kwargs: Any) -> Any:
        put, run = kwargs["streamer"].put, self._run
        is_prompt = True

        def stamped(value: Any) -> None:
            nonlocal is_prompt
            if not is_prompt:
                run.sent()
            is_prompt = False
            put(value)

        kwargs["streamer"].put = stamped
        with run:
            return self._model.generate(**kwargs)


def stamps(run: Run, streamer: Any) -> Any:
    """Stamp what one of transformers' streamers hands over."""
    finalized = streamer.on_finalized_text

    def stamped(text: str, stream_end: bool = False) -> None:
        run.sent()
        finalized(text, stream_end=stream_end)

    streamer.on_finalized_text = stamped
    return streamer


@dataclass(frozen=True)
class Bench:
    """A model, and what it is asked for, in each of the ways."""

    model: LlamaForCausalLM
    tokenizer: Any
    tokens: int

    @property
    def arguments(self) -> dict[str, Any]:
        return {"input_ids": torch.arange(1, 9)[None], "max_new_tokens": self.tokens}

    def _generate(self, run: Run, streamer: Any) -> None:
        with run:
            self.model.generate(**self.arguments, streamer=streamer)

    def _in_a_thread(
        self, run: Run, streamer: Any, generate: Callable[..., Any] | None = None
    ) -> threading.Thread:
        thread = threading.Thread(target=generate or self._generate, args=(run, streamer))
        thread.start()
        return thread

    async def silent(self, run: Run) -> None:
        await to_thread.run_sync(self._generate, run, Silent())

    async def ours(self, run: Run) -> None:
        # A limiter of its own: at once with others.
        async with anystreamer.stream_text(
            Stamped(self.model, run),
            self.tokenizer,
            {"input_ids": self.arguments["input_ids"]},
            max_new_tokens=self.tokens,
            limiter=CapacityLimiter(1),
        ) as stream:
            async for chunk in stream:
                run.arrived(len(chunk.token_ids))
        assert len(stream.token_ids) == self.tokens

    async def drop_in(self, run: Run) -> None:
        def generate(run: Run, streamer: Any) -> None:
            Stamped(self.model, run).generate(**self.arguments, streamer=streamer)

        streamer = anystreamer.AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
        thread = self._in_a_thread(run, streamer, generate)
        async for _ in streamer:
            run.arrived()
        await to_thread.run_sync(thread.join)

    async def theirs_async(self, run: Run) -> None:
        streamer = stamps(run, AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True))
        thread = self._in_a_thread(run, streamer)
        async for _ in streamer:
            run.arrived()
        await to_thread.run_sync(thread.join)

    async def theirs_sync(self, run: Run) -> None:
        """Without a loop to be quick for: the most that a queue can do."""

        def consume() -> None:
            for _ in streamer:
                run.arrived()

        streamer = stamps(run, TextIteratorStreamer(self.tokenizer, skip_prompt=True))
        thread = self._in_a_thread(run, streamer)
        await to_thread.run_sync(consume)
        thread.join()

    async def theirs_in_threadpool(self, run: Run) -> None:
        """As iterate_in_threadpool of Starlette has it in an async application."""
        streamer = stamps(run, TextIteratorStreamer(self.tokenizer, skip_prompt=True))
        thread = self._in_a_thread(run, streamer)
        end = object()
        while await to_thread.run_sync(next, iter(streamer), end) is not end:
            run.arrived()
        await to_thread.run_sync(thread.join)

    @property
    def ways(self) -> Ways:
        return {
            "silent": (self.silent, ("asyncio",)),
            "stream_text": (self.ours, ALL),
            "AsyncTextIteratorStreamer (ours)": (self.drop_in, ALL),
            "AsyncTextIteratorStreamer (transformers')": (self.theirs_async, ON_ASYNCIO),
            "TextIteratorStreamer, a thread": (self.theirs_sync, ("asyncio",)),
            "TextIteratorStreamer, threadpool": (self.theirs_in_threadpool, ALL),
        }


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="ways whose names contain these")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES))
    options = parser.parse_args()
    rounds = 3 if options.quick else 8
    torch.set_num_threads(TORCH_THREADS)
    tokenizer = make_tokenizer()
    results: Table = {"environment": environment(options)}

    def measure(name: str, bench: Bench, **kwargs: Any) -> None:
        ways = {
            way: each
            for way, each in bench.ways.items()
            if way == "silent" or not options.only or any(word in way for word in options.only)
        }
        results[name] = compare(ways, bench.tokens, rounds=rounds, **kwargs)
        write(results, options.out)

    for size in options.sizes or list(SIZES)[: 2 if options.quick else None]:
        layers, hidden, tokens = SIZES[size]
        model = make_model(layers, hidden)
        bench = partial(Bench, model, tokenizer)
        few = bench(tokens // (2 if options.quick else 1))
        measure(f"{size} model, idle loop", few)
        measure(f"{size} model, loop busy half the time", few, is_busy=True)
        if size == "small":
            eight = bench(few.tokens // 4)
            measure(f"{size} model, {AT_ONCE} at once", eight, streams=AT_ONCE)
    show("overhead", results)


if __name__ == "__main__":
    main()
