"""How soon a cancel stops the model, in each phase, and what the controls cost."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import timeit
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import torch
from anyio import to_thread
from transformers import AsyncTextIteratorStreamer

import anystreamer

from .method import ALL_LOOPS, ON_ASYNCIO, Parts, Table, compare, run_on, summary
from .models import Silent, make_model, make_tokenizer

PROMPT = 3_000  # tokens of a long prefill

Cancelled = tuple[int, float]  # passes that began after the cancel, milliseconds until the end


class RaisingStreamer(Silent):
    """As in ``transformers serve``: after the cancel, it raises in generate()."""

    is_cancelled = False

    def put(self, value: torch.Tensor) -> None:
        if self.is_cancelled:
            raise RuntimeError("cancelled")

    def cancel(self) -> None:
        self.is_cancelled = True


class Bench:
    """A model that counts its forward passes, and the phases in which it can be cancelled."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.begun = Counter[str]()
        model.register_forward_pre_hook(partial(self._count, "passes"))
        for layer in model.model.layers:
            layer.register_forward_pre_hook(partial(self._count, "layers"))

    def _count(self, kind: str, *_: Any) -> None:
        self.begun[kind] += 1

    async def cancel(
        self, begin: Callable[[], Any], number: int = 0, kind: str = "passes", seconds: float = 0.0
    ) -> Cancelled:
        """Run *begin*. When that many passes or layers have begun, wait that long, and cancel it.

        The moment is random, within some milliseconds.
        """
        due, passes, at = self.begun[kind] + number, 0, 0.0

        async def watch() -> None:
            nonlocal passes, at
            while self.begun[kind] < due:
                await anyio.sleep(0.0005)
            await anyio.sleep(seconds + random.uniform(0, 0.003))
            passes, at = self.begun["passes"], time.perf_counter()
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await begin()
        return self.begun["passes"] - passes, 1e3 * (time.perf_counter() - at)

    def stream(self, prompt: int = 8, **kwargs: Any) -> Any:
        ids = torch.randint(1, 500, (1, prompt))
        kwargs = {"max_new_tokens": 500} | kwargs
        return anystreamer.stream_text(self.model, self.tokenizer, {"input_ids": ids}, **kwargs)

    async def read(self, **kwargs: Any) -> None:
        async with self.stream(**kwargs) as stream:
            await stream.read()

    async def prefill(self, within: str) -> Cancelled:
        read = partial(self.read, prompt=PROMPT, cancel_within=within)
        return await self.cancel(read, 2, "layers")

    async def decoding(self) -> Cancelled:
        return await self.cancel(self.read, 6)

    async def queued(self) -> Cancelled:
        """The model works on another generation, whose one pass is not counted."""
        may_run = threading.Event()

        def wait(*_: Any) -> None:
            may_run.wait()

        hook = self.model.register_forward_pre_hook(wait)
        async with self.stream(max_new_tokens=1) as first:
            start = self.begun["passes"]
            _, milliseconds = await self.cancel(self.read)
            passes = max(0, self.begun["passes"] - start - 1)
            may_run.set()
            await first.read()
        hook.remove()
        return passes, milliseconds

    async def full_buffer(self) -> Cancelled:
        async def hold() -> None:
            async with self.stream(max_buffer_size=1):
                await anyio.sleep_forever()

        return await self.cancel(hold, 1, seconds=0.05)

    async def raising_put(self) -> Cancelled:
        streamer = RaisingStreamer()
        return await self._with_a_thread(streamer, streamer.cancel)

    async def never_stopped(self) -> Cancelled:
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
        return await self._with_a_thread(streamer, stop=lambda: None)

    async def _with_a_thread(self, streamer: Any, stop: Callable[[], None]) -> Cancelled:
        """Cancel a task that waits beside the thread of ``generate()``."""

        def generate() -> None:
            with contextlib.suppress(RuntimeError):
                ids = torch.arange(1, 9)[None]
                self.model.generate(ids, streamer=streamer, max_new_tokens=500)

        async def run() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(to_thread.run_sync, generate)  # its thread is waited for
                try:
                    await anyio.sleep_forever()
                finally:
                    stop()

        return await self.cancel(run, 6)


async def repeated(phase: Callable[[], Any], times: int) -> Table:
    passes, milliseconds = zip(*[await phase() for _ in range(times)], strict=True)
    figures = {"passes_after": list(passes), "ms_until_joined": list(milliseconds)}
    return {"times": times} | summary([figures])


CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "`timeout=`": {"timeout": anystreamer.Timeouts(between_tokens=60, total=3600)},
    "`max_buffer_size=`": {"max_buffer_size": 1_000_000},
    '`cancel_within="layer"`': {"cancel_within": "layer"},
}


def costs(bench: Bench, tokens: int, rounds: int) -> Table:
    """The time per token with each control, and its ratio to the time without one."""

    async def once(kwargs: dict[str, Any]) -> Table:
        async with bench.stream(max_new_tokens=tokens, **kwargs) as stream:
            await stream.read()
        assert stream.timing.first_token is not None
        return {"ms_per_token": 1e3 * (stream.timing.total - stream.timing.first_token) / tokens}

    ways = {name: partial(anyio.run, once, kwargs) for name, kwargs in CONTROLS.items()}
    table = compare(ways, rounds, "ms_per_token", warm_up=1, none="none")
    return {name: row for name, row in table.items() if name != "none"}


def checking_between_layers(bench: Bench) -> dict[str, float]:
    """Microseconds that ``cancel_within="layer"`` adds to each call of a layer."""
    layer, x, best = bench.model.model.layers[0], torch.zeros(1), []
    layer.forward = lambda x: x  # it costs nothing, so that only the check is measured

    def generate(**kwargs: Any) -> Any:
        """In place of the model's, with the same hooks."""

        took = timeit.repeat(partial(layer, x), timer=time.thread_time, number=20_000, repeat=10)
        best.append(1e6 * min(took) / 20_000)
        return kwargs["input_ids"]

    bench.model.generate = generate
    for within in ("step", "layer"):
        anyio.run(partial(bench.read, cancel_within=within))
    return {"us_added_per_layer": best[1] - best[0]}


def measure(is_quick: bool) -> Parts:
    many, few, rounds = (30, 2, 8) if is_quick else (200, 5, 25)
    tokenizer = make_tokenizer()
    small, middle, large = (
        Bench(make_model(*size), tokenizer) for size in ((2, 128), (8, 512), (24, 512))
    )
    phases = {
        "waiting for its turn": (small.queued, many),
        "decoding": (small.decoding, many),
        "decoding, a streamer that raises from `put()`": (small.raising_put, many),
        "decoding, transformers' async streamer": (small.never_stopped, few),
        "held by a full buffer": (small.full_buffer, many // 2),
    }
    for within in ("step", "layer"):
        name = f'prefill of {PROMPT:,} tokens, `cancel_within="{within}"`'
        phases[name] = (partial(large.prefill, within), few)
    for name, (phase, times) in phases.items():
        for loop in ON_ASYNCIO if phase == small.never_stopped else ALL_LOOPS:
            yield "phases", name, loop, run_on(loop, repeated, phase, times)
    yield "costs", "small", costs(small, 400, rounds)
    yield "costs", "larger", costs(middle, 100, rounds)
    yield "checks", '`cancel_within="layer"`', checking_between_layers(small)
