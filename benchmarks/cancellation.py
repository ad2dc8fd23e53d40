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
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import torch
from anyio import to_thread
from transformers import AsyncTextIteratorStreamer, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

import anystreamer

from .method import ALL_LOOPS, ON_ASYNCIO, Table, percentiles, ratio, run_on, take_turns
from .models import make_model, make_tokenizer

PROMPT = 3_000  # tokens of a long prefill


class Passes:
    """Counts the forward passes of a model and of its layers."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.passes = self.layers = 0
        model.register_forward_pre_hook(self._pass)
        for layer in model.model.layers:
            layer.register_forward_pre_hook(self._layer)

    def _pass(self, *_: Any) -> None:
        self.passes += 1

    def _layer(self, *_: Any) -> None:
        self.layers += 1


@dataclass(frozen=True)
class Cancelled:
    """One cancel: the forward passes that began after it, and the time that the block took."""

    passes: int
    milliseconds: float


async def cancel(
    begin: Callable[..., Any], counts: Passes, is_time: Callable[[], bool]
) -> Cancelled:
    """Run *begin*, and cancel it a random moment after *is_time*."""
    passes, at = 0, 0.0

    async def watch() -> None:
        nonlocal passes, at
        while not is_time():
            await anyio.sleep(0.0005)
        await anyio.sleep(random.uniform(0, 0.003))
        passes, at = counts.passes, time.perf_counter()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await begin()
    return Cancelled(counts.passes - passes, 1e3 * (time.perf_counter() - at))


class Bench:
    """A model, its counts, and the phases in which it can be cancelled."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.counts = Passes(model)

    def stream(self, prompt: int = 8, **kwargs: Any) -> Any:
        ids = torch.randint(1, 500, (1, prompt))
        kwargs = {"max_new_tokens": 500} | kwargs
        return anystreamer.stream_text(self.model, self.tokenizer, {"input_ids": ids}, **kwargs)

    async def read(self, **kwargs: Any) -> None:
        async with self.stream(**kwargs) as stream:
            await stream.read()

    async def prefill(self, cancel_within: str) -> Cancelled:
        start = self.counts.layers
        return await cancel(
            lambda: self.read(prompt=PROMPT, cancel_within=cancel_within),
            self.counts,
            lambda: self.counts.layers > start + 1,
        )

    async def decoding(self) -> Cancelled:
        start = self.counts.passes
        return await cancel(self.read, self.counts, lambda: self.counts.passes > start + 5)

    async def queued(self) -> Cancelled:
        """The model works on another generation, whose one pass is not counted."""
        gate = threading.Event()
        hook = self.model.register_forward_pre_hook(lambda *_: gate.wait() and None)
        async with self.stream(max_new_tokens=1) as first:
            start = self.counts.passes
            result = await cancel(self.read, self.counts, lambda: True)
            passes = self.counts.passes - start - (self.counts.passes > start)
            gate.set()
            await first.read()
        hook.remove()
        return Cancelled(passes, result.milliseconds)

    async def full_buffer(self) -> Cancelled:
        start, called = self.counts.passes, time.perf_counter()

        async def hold() -> None:
            async with self.stream(max_buffer_size=1):
                await anyio.sleep_forever()

        def is_time() -> bool:
            return self.counts.passes > start and time.perf_counter() > called + 0.05

        return await cancel(hold, self.counts, is_time)

    async def raising_put(self) -> Cancelled:
        """Like ``transformers serve``: after the cancel, the streamer raises in generate()."""
        is_cancelled = threading.Event()

        class Raising(BaseStreamer):
            def put(self, value: torch.Tensor) -> None:
                if is_cancelled.is_set():
                    raise RuntimeError("cancelled")

            def end(self) -> None:
                pass

        return await self.in_a_thread(Raising(), anyio.sleep_forever, is_cancelled.set)

    async def never_stopped(self) -> Cancelled:
        """transformers' AsyncTextIteratorStreamer: it has no way to stop."""
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)

        async def read() -> None:
            async for _ in streamer:
                pass

        return await self.in_a_thread(streamer, read, lambda: None)

    async def in_a_thread(
        self, streamer: Any, read: Callable[[], Any], stop: Callable[[], None]
    ) -> Cancelled:
        async def run() -> None:
            thread = threading.Thread(target=generate, args=(self.model, streamer))
            thread.start()
            try:
                await read()
            finally:
                stop()
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(thread.join)

        start = self.counts.passes
        return await cancel(run, self.counts, lambda: self.counts.passes > start + 5)


def generate(model: Any, streamer: Any) -> None:
    with contextlib.suppress(RuntimeError):
        model.generate(torch.arange(1, 9)[None], streamer=streamer, max_new_tokens=500)


def on_each_loop(phase: Callable[[], Any], times: int, loops: tuple[str, ...] = ALL_LOOPS) -> Table:
    results: Table = {}
    for loop in loops:

        async def main() -> list[Cancelled]:
            return [await phase() for _ in range(times)]

        each = run_on(loop, main)
        passes = [one.passes for one in each]
        results[loop] = {
            "times": times,
            "passes_after": {"median": statistics.median(passes), "max": max(passes)},
            "ms_until_joined": percentiles([one.milliseconds for one in each], 99, 100),
        }
    return results


CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "timeout=": {"timeout": anystreamer.Timeouts(between_tokens=60, total=3600)},
    "max_buffer_size=": {"max_buffer_size": 1_000_000},
    'cancel_within="layer"': {"cancel_within": "layer"},
}


def costs(bench: Bench, tokens: int, rounds: int) -> Table:
    """The time per token with each control, and its ratio to the time without one."""

    async def stream(kwargs: dict[str, Any]) -> float:
        async with bench.stream(max_new_tokens=tokens, **kwargs) as stream:
            await stream.read()
        assert stream.timing.first_token is not None
        return 1e3 * float(stream.timing.total - stream.timing.first_token) / tokens

    ways = {name: partial(anyio.run, stream, kwargs) for name, kwargs in CONTROLS.items()}
    took = take_turns(ways, rounds, warm_up=1)
    return {
        name: {
            "ratio": ratio(ms, took["none"]),
            "ratio_of_best": min(ms) / min(took["none"]),
            "ms_per_token_best": min(ms),
        }
        for name, ms in took.items()
    }


class Identity(torch.nn.Module):
    """A layer that costs nothing, so that only the check before it is measured."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OneLayer(torch.nn.Module):
    """A model whose ``generate()`` measures the microseconds of a call of its one layer."""

    _no_split_modules = ("Identity",)
    us_of_a_layer = 0.0

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.config, self.generation_config = model.config, model.generation_config
        self.device, self.layer = model.device, Identity()

    def generate(self, **kwargs: Any) -> Any:
        layer, x = self.layer, torch.zeros(1)

        def once() -> float:
            started = time.thread_time()
            for _ in range(20_000):
                layer(x)
            return (time.thread_time() - started) / 20_000

        self.us_of_a_layer = 1e6 * min(once() for _ in range(10))
        return kwargs["input_ids"]


def checking_between_layers() -> dict[str, float]:
    """Microseconds that ``cancel_within="layer"`` adds to each call of a layer."""
    model, tokenizer = OneLayer(make_model(1, 8)).eval(), make_tokenizer()

    async def us_of_a_layer(within: Any) -> float:
        async with anystreamer.stream_text(
            model, tokenizer, {"input_ids": torch.arange(1, 9)[None]}, cancel_within=within
        ) as stream:
            await stream.read()
        return model.us_of_a_layer

    without, checked = (anyio.run(us_of_a_layer, within) for within in ("step", "layer"))
    return {"us_added_per_layer": checked - without}


def measure(is_quick: bool) -> Iterator[Table]:
    many, few = (30, 2) if is_quick else (200, 5)
    tokenizer = make_tokenizer()
    small = Bench(make_model(2, 128), tokenizer)
    raising, peer = "a streamer that raises from `put()`", "transformers' async streamer"
    yield {"waiting for its turn": on_each_loop(small.queued, many)}
    yield {"decoding": on_each_loop(small.decoding, many)}
    yield {f"decoding, {raising}": on_each_loop(small.raising_put, many)}
    yield {f"decoding, {peer}": on_each_loop(small.never_stopped, few, ON_ASYNCIO)}
    yield {"held by a full buffer": on_each_loop(small.full_buffer, many // 2)}
    large = Bench(make_model(24, 512), tokenizer)
    for within in ("step", "layer"):
        name = f'prefill of {PROMPT:,} tokens, `cancel_within="{within}"`'
        yield {name: on_each_loop(partial(large.prefill, within), few)}
    yield {"asking between layers": checking_between_layers()}
    rounds = 8 if is_quick else 25
    yield {"cost of controls, small": costs(small, 400, rounds)}
    yield {"cost of controls, larger": costs(Bench(make_model(8, 512), tokenizer), 100, rounds)}
