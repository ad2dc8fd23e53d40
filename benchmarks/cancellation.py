"""How soon a cancel stops the model, in each phase, and what being able to stop costs.

    python benchmarks/cancellation.py [--quick] [--out benchmarks/results/cancellation.json]

A scope is cancelled in a known phase, many times on each loop: forward passes and layers begun
after it, and milliseconds until the block has been left and its thread with it. Peers, where they
can stop: transformers' streamers cannot, and generate to the end; raising from a streamer's
``put()``, as ``transformers serve`` does, can while tokens come. Costs are ratios of the time per
token to the same call without the control, both in each round, in an order that changes.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import torch
from anyio import to_thread
from common import LOOPS, environment, options_of, percentile, quartiles, write
from models import TORCH_THREADS, make_model, make_tokenizer
from tables import show
from transformers import AsyncTextIteratorStreamer, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

import anystreamer
from anystreamer._generation.layer_hooks import StopBetweenLayers

PROMPT = 3_000  # tokens of a long prefill


class Passes:
    """Counts a model's forward passes, and those of its layers."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.passes = self.layers = 0
        model.register_forward_pre_hook(self._pass)
        for layer in model.model.layers:
            layer.register_forward_pre_hook(self._layer)

    def _pass(self, *_: Any) -> None:
        self.passes += 1

    def _layer(self, *_: Any) -> None:
        self.layers += 1


class Cancelled:
    """One cancel: what ran after it, and for how long."""

    def __init__(self) -> None:
        self.passes = self.layers = 0
        self.milliseconds = 0.0


async def cancel(begin: Callable[..., Any], counts: Passes, is_time: Callable[[], bool]) -> Any:
    """Run *begin* and cancel it once *is_time*."""
    result = Cancelled()
    at = 0.0

    async def watch() -> None:
        nonlocal at
        while not is_time():
            await anyio.sleep(0.0005)
        await anyio.sleep(random.uniform(0, 0.003))
        result.passes, result.layers = counts.passes, counts.layers
        at = time.perf_counter()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await begin()
    result.milliseconds = 1e3 * (time.perf_counter() - at)
    result.passes = counts.passes - result.passes
    result.layers = counts.layers - result.layers
    return result


class Bench:
    """A model, its counts, and the phases that it can be cancelled in."""

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
        """Another generation has the turn, and goes on; it is not counted."""
        gate = threading.Event()

        def wait(*_: Any) -> None:
            gate.wait()

        hook = self.model.register_forward_pre_hook(wait)
        async with self.stream(max_new_tokens=1) as first:
            start = self.counts.passes
            result = await cancel(self.read, self.counts, lambda: True)
            result.passes = self.counts.passes - start - (self.counts.passes > start)
            gate.set()
            await first.read()
        hook.remove()
        return result

    async def full_buffer(self) -> Cancelled:
        start, told = self.counts.passes, time.perf_counter()

        async def hold() -> None:
            async with self.stream(max_buffer_size=1):
                await anyio.sleep_forever()

        def is_time() -> bool:
            return self.counts.passes > start and time.perf_counter() > told + 0.05

        return await cancel(hold, self.counts, is_time)

    async def raising_put(self) -> Cancelled:
        """As transformers serve: the streamer raises out of generate() when it sees the flag."""
        stopped = False

        class Raising(BaseStreamer):
            def put(self, value: torch.Tensor) -> None:
                if stopped:
                    raise RuntimeError("cancelled")

            def end(self) -> None:
                pass

        async def run() -> None:
            nonlocal stopped
            thread = threading.Thread(target=generate, args=(self.model, Raising()))
            thread.start()
            try:
                await anyio.sleep_forever()
            finally:
                stopped = True
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(thread.join)

        start = self.counts.passes
        return await cancel(run, self.counts, lambda: self.counts.passes > start + 5)

    async def never_stopped(self) -> Cancelled:
        """transformers' AsyncTextIteratorStreamer: nobody can tell it."""
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)

        async def run() -> None:
            thread = threading.Thread(target=generate, args=(self.model, streamer))
            thread.start()
            try:
                async for _ in streamer:
                    pass
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(thread.join)

        start = self.counts.passes
        return await cancel(run, self.counts, lambda: self.counts.passes > start + 5)


def generate(model: Any, streamer: Any) -> None:
    with contextlib.suppress(RuntimeError):
        model.generate(torch.arange(1, 9)[None], streamer=streamer, max_new_tokens=500)


def on_each_loop(
    phase: Callable[[], Any], times: int, loops: tuple[str, ...] = tuple(LOOPS)
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for loop in loops:
        backend, options = LOOPS[loop]

        async def main() -> list[Cancelled]:
            return [await phase() for _ in range(times)]

        each = anyio.run(main, backend=backend, backend_options=options)
        milliseconds = [one.milliseconds for one in each]
        results[loop] = {
            "times": times,
            "passes_after": {
                "median": statistics.median(one.passes for one in each),
                "max": max(one.passes for one in each),
            },
            "layers_after": {"max": max(one.layers for one in each)},
            "ms_until_joined": {
                "median": statistics.median(milliseconds),
                "p99": percentile(milliseconds, 0.99),
                "max": max(milliseconds),
            },
        }
    return results


CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "timeout=": {"timeout": anystreamer.Timeouts(between_tokens=60, total=3600)},
    "max_buffer_size=": {"max_buffer_size": 1_000_000},
    'cancel_within="layer"': {"cancel_within": "layer"},
}


def costs(bench: Bench, tokens: int, rounds: int) -> dict[str, Any]:
    """The time per token with each control, over that of the same round without."""
    ratios: dict[str, list[float]] = {name: [] for name in CONTROLS}
    best = dict.fromkeys(CONTROLS, math.inf)

    async def seconds(kwargs: dict[str, Any]) -> float:
        async with bench.stream(max_new_tokens=tokens, **kwargs) as stream:
            await stream.read()
        assert stream.timing.first_token is not None
        return float(stream.timing.total - stream.timing.first_token)

    for round_ in range(rounds + 1):  # the first one warms up
        names = random.sample(list(CONTROLS), len(CONTROLS))
        took = {name: anyio.run(seconds, CONTROLS[name]) / tokens for name in names}
        if round_:
            for name in names:
                ratios[name].append(took[name] / took["none"])
                best[name] = min(best[name], took[name])
    return {
        name: {
            "ratio": quartiles(ratios[name]),
            "ratio_of_best": best[name] / best["none"],
            "ms_per_token_best": 1e3 * best[name],
        }
        for name in CONTROLS
    }


class Identity(torch.nn.Module):
    """A layer that costs nothing, so that what is measured is the asking."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def asking() -> dict[str, float]:
    """Microseconds that ``cancel_within="layer"`` adds to each call of a layer."""
    layer, x = Identity(), torch.zeros(1)

    def best() -> float:
        def once() -> float:
            started = time.perf_counter()
            for _ in range(20_000):
                layer(x)
            return (time.perf_counter() - started) / 20_000

        return 1e6 * min(once() for _ in range(10))

    def produce(emit: Callable[[float], None], should_stop: Callable[[], bool]) -> None:
        emit(best())
        with StopBetweenLayers([layer], should_stop):
            emit(best())

    async def run() -> list[float]:
        async with anystreamer.stream_from_thread(produce) as stream:
            return [each async for each in stream]

    without, with_it = anyio.run(run)
    return {"us_added_per_layer": with_it - without}


def main() -> None:
    options = options_of(__doc__).parse_args()
    many, few = (30, 2) if options.quick else (200, 5)
    torch.set_num_threads(TORCH_THREADS)
    tokenizer = make_tokenizer()
    results: dict[str, Any] = {"environment": environment(options)}

    def record(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        write(results, options.out)

    small = Bench(make_model(2, 128), tokenizer)
    record("waiting for its turn", on_each_loop(small.queued, many))
    record("decoding", on_each_loop(small.decoding, many))
    record("decoding, a streamer that raises from `put()`", on_each_loop(small.raising_put, many))
    peer = ("asyncio", "uvloop")
    record("decoding, transformers' async streamer", on_each_loop(small.never_stopped, few, peer))
    record("held by a full buffer", on_each_loop(small.full_buffer, many // 2))
    large = Bench(make_model(24, 512), tokenizer)
    for within in ("step", "layer"):

        async def prefill(within: str = within) -> Cancelled:
            return await large.prefill(within)

        name = f'prefill of {PROMPT:,} tokens, `cancel_within="{within}"`'
        record(name, on_each_loop(prefill, few))
    record("asking between layers", asking())
    rounds = 8 if options.quick else 25
    record("cost of controls, small", costs(small, 400, rounds))
    middle = Bench(make_model(8, 512), tokenizer)
    record("cost of controls, larger", costs(middle, 100, rounds))
    show("cancellation", results)


if __name__ == "__main__":
    main()
