"""How soon a cancel stops the model, in each phase, and what the controls cost.

A scope is cancelled in a known phase, many times on each loop: the forward passes that begin after
it, and the milliseconds until the block has ended and its thread too. The peers: transformers'
streamers cannot stop a model, and it continues to the end. A streamer that raises from ``put()``,
as in ``transformers serve``, can stop it while tokens come. Costs are ratios of the time per token
to the same call without the control, in the same round.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import torch
from anyio import to_thread
from transformers import AsyncTextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import anystreamer

from .method import ALL_LOOPS, ON_ASYNCIO, Table, compared, run_on, summary, take_turns
from .models import make_model, make_tokenizer

PROMPT = 3_000  # tokens of a long prefill

Cancelled = tuple[int, float]  # passes that began after the cancel, milliseconds until the end


class RaisingStreamer(BaseStreamer):
    """As in ``transformers serve``: after the cancel, it raises in generate()."""

    is_cancelled = False

    def put(self, value: torch.Tensor) -> None:
        if self.is_cancelled:
            raise RuntimeError("cancelled")

    def end(self) -> None:
        pass

    def cancel(self) -> None:
        self.is_cancelled = True


class Bench:
    """A model that counts its forward passes, and the phases in which it can be cancelled."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.passes = self.layers = 0
        model.register_forward_pre_hook(self._count_pass)
        for layer in model.model.layers:
            layer.register_forward_pre_hook(self._count_layer)

    def _count_pass(self, *_: Any) -> None:
        self.passes += 1

    def _count_layer(self, *_: Any) -> None:
        self.layers += 1

    async def cancel(
        self,
        begin: Callable[..., Any],
        *,
        after_passes: int = 0,
        after_layers: int = 0,
        after_seconds: float = 0.0,
    ) -> Cancelled:
        """Run *begin*, and cancel it at a random moment after that many passes, and seconds."""
        passes, layers, at = self.passes + after_passes, self.layers + after_layers, 0.0

        async def watch() -> None:
            nonlocal passes, at
            while self.passes < passes or self.layers < layers:
                await anyio.sleep(0.0005)
            await anyio.sleep(after_seconds + random.uniform(0, 0.003))
            passes, at = self.passes, time.perf_counter()
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await begin()
        return self.passes - passes, 1e3 * (time.perf_counter() - at)

    def stream(self, prompt: int = 8, **kwargs: Any) -> Any:
        ids = torch.randint(1, 500, (1, prompt))
        kwargs = {"max_new_tokens": 500} | kwargs
        return anystreamer.stream_text(self.model, self.tokenizer, {"input_ids": ids}, **kwargs)

    async def read(self, **kwargs: Any) -> None:
        async with self.stream(**kwargs) as stream:
            await stream.read()

    async def prefill(self, within: str) -> Cancelled:
        read = partial(self.read, prompt=PROMPT, cancel_within=within)
        return await self.cancel(read, after_layers=2)

    async def decoding(self) -> Cancelled:
        return await self.cancel(self.read, after_passes=6)

    async def queued(self) -> Cancelled:
        """The model works on another generation, whose one pass is not counted."""
        may_run = threading.Event()

        def wait(*_: Any) -> None:
            may_run.wait()

        hook = self.model.register_forward_pre_hook(wait)
        async with self.stream(max_new_tokens=1) as first:
            start = self.passes
            _, milliseconds = await self.cancel(self.read)
            passes = self.passes - start - (self.passes > start)
            may_run.set()
            await first.read()
        hook.remove()
        return passes, milliseconds

    async def full_buffer(self) -> Cancelled:
        async def hold() -> None:
            async with self.stream(max_buffer_size=1):
                await anyio.sleep_forever()

        return await self.cancel(hold, after_passes=1, after_seconds=0.05)

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
            thread = threading.Thread(target=generate)
            thread.start()
            try:
                await anyio.sleep_forever()
            finally:
                stop()
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(thread.join)

        return await self.cancel(run, after_passes=6)


def on_each_loop(phase: Callable[[], Any], times: int, loops: tuple[str, ...] = ALL_LOOPS) -> Table:
    async def main() -> Table:
        passes, milliseconds = zip(*[await phase() for _ in range(times)], strict=True)
        return {"passes_after": list(passes), "ms_until_joined": list(milliseconds)}

    return {loop: {"times": times} | summary([run_on(loop, main)]) for loop in loops}


CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "timeout=": {"timeout": anystreamer.Timeouts(between_tokens=60, total=3600)},
    "max_buffer_size=": {"max_buffer_size": 1_000_000},
    'cancel_within="layer"': {"cancel_within": "layer"},
}


def costs(bench: Bench, tokens: int, rounds: int) -> Table:
    """The time per token with each control, and its ratio to the time without one."""

    async def once(kwargs: dict[str, Any]) -> Table:
        async with bench.stream(max_new_tokens=tokens, **kwargs) as stream:
            await stream.read()
        assert stream.timing.first_token is not None
        return {"ms_per_token": 1e3 * (stream.timing.total - stream.timing.first_token) / tokens}

    ways = {name: partial(anyio.run, once, kwargs) for name, kwargs in CONTROLS.items()}
    table = compared(take_turns(ways, rounds, warm_up=1), "ms_per_token", none="none")
    return {f"`{name}`": row for name, row in table.items() if name != "none"}


def checking_between_layers(bench: Bench) -> dict[str, float]:
    """Microseconds that ``cancel_within="layer"`` adds to each call of a layer."""
    layer, x, best = bench.model.model.layers[0], torch.zeros(1), []
    layer.forward = lambda x: x  # it costs nothing, so that only the check is measured

    def generate(**kwargs: Any) -> Any:
        """In place of the model's, with the same hooks."""

        def once() -> float:
            started = time.thread_time()
            for _ in range(20_000):
                layer(x)
            return (time.thread_time() - started) / 20_000

        best.append(1e6 * min(once() for _ in range(10)))
        return kwargs["input_ids"]

    bench.model.generate = generate
    for within in ("step", "layer"):
        anyio.run(partial(bench.read, cancel_within=within))
    return {"us_added_per_layer": best[1] - best[0]}


def measure(is_quick: bool) -> Iterator[Table]:
    many, few, rounds = (30, 2, 8) if is_quick else (200, 5, 25)
    tokenizer = make_tokenizer()
    small, middle, large = (
        Bench(make_model(*size), tokenizer) for size in ((2, 128), (8, 512), (24, 512))
    )
    phases: dict[str, tuple[Any, ...]] = {
        "waiting for its turn": (small.queued, many),
        "decoding": (small.decoding, many),
        "decoding, a streamer that raises from `put()`": (small.raising_put, many),
        "decoding, transformers' async streamer": (small.never_stopped, few, ON_ASYNCIO),
        "held by a full buffer": (small.full_buffer, many // 2),
    }
    for within in ("step", "layer"):
        name = f'prefill of {PROMPT:,} tokens, `cancel_within="{within}"`'
        phases[name] = (partial(large.prefill, within), few)
    yield {"phases": {name: on_each_loop(*args) for name, args in phases.items()}}
    sizes = {"small": costs(small, 400, rounds), "larger": costs(middle, 100, rounds)}
    yield {"costs": sizes}
    yield {"checks": {'`cancel_within="layer"`': checking_between_layers(small)}}
