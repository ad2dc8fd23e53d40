"""What streaming costs per token, and how late text arrives.

    python benchmarks/overhead.py [--quick] [--out benchmarks/results/overhead.json]

Every figure is taken beside its peers in one run: each round runs every variant once, in an order
that changes, and a variant's cost is its time per token divided by that of the same round's
baseline, which is ``generate()`` in a worker thread with a streamer that does nothing. Medians over
the rounds, with the quartiles. Latency is counted from the moment a streamer has a piece of text
until the consumer has it; for this library from ``put()`` on, decoding included.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import torch
from anyio import to_thread
from common import (
    LOOPS,
    TORCH_THREADS,
    environment,
    make_model,
    make_tokenizer,
    percentile,
    quartiles,
)
from transformers import AsyncTextIteratorStreamer, LlamaForCausalLM, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import anystreamer

# Layers and width of the two models: about 1 ms and 5 ms per token.
SIZES = {"small": (2, 128), "larger": (4, 384)}


class Silent(BaseStreamer):
    """The baseline: does nothing."""

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


class Run:
    """One generation of one variant: the time per token, and how late each piece was."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sent: deque[float] = deque()
        self.latencies: list[float] = []

    def arrived(self, pieces: int = 1) -> None:
        now = time.perf_counter()
        for _ in range(pieces):
            self.latencies.append(now - self.sent.popleft())


class Stamped:
    """A model whose streamer's ``put()`` is stamped with the time, for streamers made inside."""

    def __init__(self, model: LlamaForCausalLM, run: Run) -> None:
        self.generation_config = model.generation_config
        self.device = model.device
        self._model, self._run = model, run

    def generate(self, **kwargs: Any) -> Any:
        put, sent = kwargs["streamer"].put, self._run.sent
        is_prompt = True

        def stamped(value: Any) -> None:
            nonlocal is_prompt
            if not is_prompt:
                sent.append(time.perf_counter())
            is_prompt = False
            put(value)

        kwargs["streamer"].put = stamped
        return timed(self._run, self._model, kwargs)


def timed(run: Run, model: LlamaForCausalLM, kwargs: dict[str, Any]) -> Any:
    """Generate, and take the time, without the thread's start."""
    started = time.perf_counter()
    try:
        return model.generate(**kwargs)
    finally:
        run.seconds = time.perf_counter() - started


def stamps(run: Run, streamer: Any) -> Any:
    """Stamp what one of transformers' streamers hands over."""
    finalized = streamer.on_finalized_text

    def stamped(text: str, stream_end: bool = False) -> None:
        run.sent.append(time.perf_counter())
        finalized(text, stream_end=stream_end)

    streamer.on_finalized_text = stamped
    return streamer


async def silent(model: Any, tokenizer: Any, inputs: Any, tokens: int, run: Run) -> None:
    kwargs = {**inputs, "max_new_tokens": tokens, "streamer": Silent()}
    await to_thread.run_sync(timed, run, model, kwargs)


async def ours(model: Any, tokenizer: Any, inputs: Any, tokens: int, run: Run) -> None:
    async with anystreamer.stream_text(
        Stamped(model, run), tokenizer, inputs, max_new_tokens=tokens
    ) as stream:
        async for chunk in stream:
            run.arrived(len(chunk.token_ids))
    assert len(stream.token_ids) == tokens


async def drop_in(model: Any, tokenizer: Any, inputs: Any, tokens: int, run: Run) -> None:
    streamer = anystreamer.AsyncTextIteratorStreamer(tokenizer, skip_prompt=True)
    kwargs = {**inputs, "max_new_tokens": tokens, "streamer": streamer}
    thread = threading.Thread(target=Stamped(model, run).generate, kwargs=kwargs)
    thread.start()
    async for _ in streamer:
        run.arrived()
    await to_thread.run_sync(thread.join)


async def theirs_async(model: Any, tokenizer: Any, inputs: Any, tokens: int, run: Run) -> None:
    streamer = stamps(run, AsyncTextIteratorStreamer(tokenizer, skip_prompt=True))
    kwargs = {**inputs, "max_new_tokens": tokens, "streamer": streamer}
    thread = threading.Thread(target=timed, args=(run, model, kwargs))
    thread.start()
    async for _ in streamer:
        run.arrived()
    await to_thread.run_sync(thread.join)


async def theirs_sync(model: Any, tokenizer: Any, inputs: Any, tokens: int, run: Run) -> None:
    """In a thread of its own there is no loop to be quick for: the most that a queue can do."""
    streamer = stamps(run, TextIteratorStreamer(tokenizer, skip_prompt=True))
    kwargs = {**inputs, "max_new_tokens": tokens, "streamer": streamer}
    thread = threading.Thread(target=timed, args=(run, model, kwargs))
    thread.start()
    for _ in streamer:
        run.arrived()
    thread.join()


async def theirs_in_threadpool(
    model: Any, tokenizer: Any, inputs: Any, tokens: int, run: Run
) -> None:
    """TextIteratorStreamer in an async application, as iterate_in_threadpool of Starlette does."""
    streamer = stamps(run, TextIteratorStreamer(tokenizer, skip_prompt=True))
    kwargs = {**inputs, "max_new_tokens": tokens, "streamer": streamer}
    thread = threading.Thread(target=timed, args=(run, model, kwargs))
    thread.start()
    end = object()
    while await to_thread.run_sync(next, iter(streamer), end) is not end:
        run.arrived()
    await to_thread.run_sync(thread.join)


Variant = Callable[[Any, Any, Any, int, Run], Any]
VARIANTS: dict[str, tuple[Variant, list[str]]] = {
    "silent": (silent, ["asyncio"]),
    "anystreamer.stream_text": (ours, ["asyncio", "uvloop", "trio"]),
    "anystreamer.AsyncTextIteratorStreamer": (drop_in, ["asyncio", "uvloop", "trio"]),
    "transformers.AsyncTextIteratorStreamer": (theirs_async, ["asyncio", "uvloop"]),
    "transformers.TextIteratorStreamer (no loop)": (theirs_sync, ["asyncio"]),
    "transformers.TextIteratorStreamer (threadpool)": (
        theirs_in_threadpool,
        ["asyncio", "uvloop", "trio"],
    ),
}


async def busy_half_the_time() -> None:
    """Other work on the loop: half a millisecond of it in every millisecond."""
    while True:
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        await anyio.sleep(0.0005)


def run_once(
    variant: Variant, loop: str, busy: bool, model: Any, tokenizer: Any, inputs: Any, tokens: int
) -> Run:
    run = Run()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            if busy:
                group.start_soon(busy_half_the_time)
            await variant(model, tokenizer, inputs, tokens, run)
            group.cancel_scope.cancel()

    backend, options = LOOPS[loop]
    anyio.run(main, backend=backend, backend_options=options)
    return run


def measure(
    model: Any, tokenizer: Any, tokens: int, rounds: int, busy: bool, only: list[str]
) -> dict[str, Any]:
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    jobs = [
        (name, loop, variant)
        for name, (variant, loops) in VARIANTS.items()
        for loop in loops
        if not only or any(word in name for word in only) or name == "silent"
    ]
    # The busy loop slows the baseline too: whoever shares the GIL with it is slowed.
    per_token: dict[tuple[str, str], list[float]] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    latencies: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds + 1):  # the first one warms up
        random.shuffle(jobs)
        runs = {
            (name, loop): run_once(variant, loop, busy, model, tokenizer, inputs, tokens)
            for name, loop, variant in jobs
        }
        if round_ == 0:
            continue
        baseline = runs["silent", "asyncio"].seconds
        for key, run in runs.items():
            per_token.setdefault(key, []).append(run.seconds / tokens)
            ratios.setdefault(key, []).append(run.seconds / baseline)
            latencies.setdefault(key, []).extend(run.latencies)
    return {
        f"{name} on {loop}": {
            "ms_per_token": quartiles([1e3 * value for value in per_token[name, loop]]),
            "ratio_to_silent": quartiles(ratios[name, loop]),
            # The best of all rounds is what a noisy machine disturbs least.
            "ratio_of_best": min(per_token[name, loop]) / min(per_token["silent", "asyncio"]),
            "latency_ms": {
                "median": 1e3 * percentile(late, 0.5),
                "p99": 1e3 * percentile(late, 0.99),
                "max": 1e3 * max(late),
            }
            if (late := latencies[name, loop])
            else None,
        }
        for name, loop in sorted(ratios)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, help="how many")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--only", nargs="*", default=[], help="variants whose names contain these")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    rounds = options.rounds or (6 if options.quick else 15)
    torch.set_num_threads(TORCH_THREADS)
    tokenizer = make_tokenizer()
    results: dict[str, Any] = {"environment": environment()}

    def record(name: str, result: dict[str, Any]) -> None:
        results[name] = result  # written at once: a run takes long, and may be cut short
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=2) + "\n")

    for size in options.sizes:
        model = make_model(*SIZES[size])
        tokens = {"small": 1000, "larger": 200}[size] // (2 if options.quick else 1)
        for busy in (False, True):
            name = f"{size} model, {'loop busy half the time' if busy else 'idle loop'}"
            table = measure(model, tokenizer, tokens, rounds, busy, options.only)
            show(name, table)
            record(name, table)


def show(name: str, table: dict[str, Any]) -> None:
    print(
        f"\n{name}\n{'':58} ms/token  ratio (quartiles)      best of all  latency ms: median  p99"
    )
    for variant, row in table.items():
        ratio, late = row["ratio_to_silent"], row["latency_ms"]
        tail = f"{late['median']:19.3f} {late['p99']:6.2f}" if late else ""
        print(
            f"{variant:58} {row['ms_per_token']['median']:8.3f}  {ratio['median']:.3f} "
            f"({ratio['q1']:.3f}-{ratio['q3']:.3f}) best {row['ratio_of_best']:.3f} {tail}"
        )


if __name__ == "__main__":
    main()
