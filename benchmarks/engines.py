"""What an engine makes of many requests: tokens per second, first tokens, lateness, the loop.

    python benchmarks/engines.py [--quick] [--out benchmarks/results/engines.json]

The same requests, all at once, go through every way: an engine with continuous batching and one
without, a `stream_text` for each, what others do, and transformers' continuous batching manager by
itself. That one, streaming to a thread that throws all away, is the limit: each round runs every
way once, in an order that changes, and a way's speed is its tokens per second divided by the
limit's in that round. Medians over the rounds, with the quartiles. Time counts from the first
request to the last token at its consumer, without the opening of an engine or a manager; that of a
first token counts from the first request too. The ways that run one request after the other take
part in the first rounds only, and with `--quick` with 1 and 16 streams only: their speed does not
depend on how many wait.

Apart from that, since to watch costs something: how late tokens reach their consumers, counted from
the moment the manager hands them out, and once more from the time that the pieces themselves tell
(`TextChunk.elapsed`); how late the loop wakes who sleeps for a millisecond; and how far apart the
streams get. And what opening an engine on the embedded model takes, in fresh processes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import subprocess
import sys
import threading
import time
from argparse import SUPPRESS
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import anyio
import psutil  # type: ignore[import-untyped]
import torch
from anyio import to_thread
from common import LOOPS, Table, environment, options_of, percentile, quartiles, write
from models import TORCH_THREADS, make_model, make_tokenizer
from tables import show
from transformers import AsyncTextIteratorStreamer

import anystreamer
from anystreamer._engine.cb_config import validate_cb_config
from anystreamer.demo import load_demo

LAYERS, HIDDEN = 4, 128
STREAMS = (1, 4, 16, 64)
PROMPT = 16  # tokens

# The limit's thread takes what is ready this often (seconds): one that is woken for every token
# takes more of the interpreter from the model's thread.
LIMIT_PACE = 0.005

BEAT = 0.001  # seconds that the heartbeat sleeps

# The goals that an engine with continuous batching is held to.
OF_THE_LIMIT = 0.95
TIMES_ONE_BY_ONE = 5
LATEST_MS = 10
LOOP_LATE_MS = 5
OPENING_MIB = 200
OPENING_SECONDS = 1


class Run:
    """One go of one way: who has got how many tokens, and when."""

    def __init__(self, streams: int, tokens: int) -> None:
        self.tokens = tokens
        self.received = [0] * streams
        self.called = [0.0] * streams
        self.first: dict[int, float] = {}  # by stream: seconds until its first token
        self.started = self.ended = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def got(self, stream: int, tokens: int, elapsed: float | None = None) -> None:
        self.ended = time.perf_counter()
        if stream not in self.first:
            self.first[stream] = self.ended - self.started
        self.received[stream] += tokens

    def per_second(self) -> float:
        assert self.received == [self.tokens] * len(self.received)
        return sum(self.received) / (self.ended - self.started)


class Watched(Run):
    """A go that is watched: how late each token was, the loop, and how far apart streams got."""

    def __init__(self, streams: int, tokens: int) -> None:
        super().__init__(streams, tokens)
        self.made: list[list[float]] = [[] for _ in range(streams)]  # when each token was
        self.late: list[float] = []
        self.late_as_told: list[float] = []
        self.beats: list[float] = []
        self.apart: list[int] = []
        self.made_apart: list[int] = []

    def got(self, stream: int, tokens: int, elapsed: float | None = None) -> None:
        now, begin = time.perf_counter(), self.received[stream]
        self.late.extend(now - made for made in self.made[stream][begin : begin + tokens])
        if elapsed is not None:
            self.late_as_told.append(now - self.called[stream] - elapsed)
        super().got(stream, tokens, elapsed)

    def stamp(self, manager: Any, prompts: list[list[int]]) -> None:
        """Let a manager tell when it hands out tokens. Prompts differ, and tell whose they are."""
        add, deliver = manager.add_request, manager.output_router.deliver_batch
        made: dict[str, list[float]] = {}
        of_prompt = {tuple(ids): times for ids, times in zip(prompts, self.made, strict=False)}

        def add_request(ids: list[int], *, request_id: str, **kwargs: Any) -> Any:
            made[request_id] = of_prompt[tuple(ids)]
            return add(ids, request_id=request_id, **kwargs)

        def deliver_batch(outputs: list[Any]) -> None:
            now = time.perf_counter()
            for output in outputs:
                times = made[output.request_id]
                times.extend([now] * (len(output.generated_tokens) - len(times)))
            deliver(outputs)

        manager.add_request = add_request
        manager.output_router.deliver_batch = deliver_batch

    async def beat(self) -> None:
        while True:
            due = time.perf_counter() + BEAT
            await anyio.sleep(BEAT)
            self.beats.append(time.perf_counter() - due)
            least, most = min(self.received), max(self.received)
            if least and most < self.tokens:
                made = [len(times) for times in self.made]
                self.apart.append(most - least)
                self.made_apart.append(max(made) - min(made))


class Bench:
    """A model, and requests for it."""

    def __init__(self, tokens: int) -> None:
        self.model: Any = make_model(LAYERS, HIDDEN)
        self.tokenizer = make_tokenizer()
        self.tokens = tokens
        self.settings = validate_cb_config(self.model, max(STREAMS), None)
        torch.manual_seed(1)
        self.prompts: list[list[int]] = torch.randint(1, 500, (max(STREAMS), PROMPT)).tolist()

    @contextmanager
    def manager(self) -> Iterator[Any]:
        """transformers' manager, as an engine makes it."""
        with self.model.continuous_batching_context_manager(
            generation_config=deepcopy(self.model.generation_config),
            continuous_batching_config=self.settings.for_manager(sampling=False),
            warmup=False,
        ) as manager:
            while manager.batch_processor is None:  # until its thread has made the cache
                time.sleep(0.001)
            yield manager

    def add_request(self, manager: Any, stream: int, streaming: bool = True) -> None:
        manager.add_request(
            self.prompts[stream],
            request_id=str(stream),
            max_new_tokens=self.tokens,
            streaming=streaming,
            eos_token_id=-1,
        )

    def engine(self, batching: Literal["none", "continuous"]) -> Any:
        return anystreamer.open_engine(self.model, self.tokenizer, batching=batching)

    # -- the ways

    def limit(self, run: Run, streaming: bool = True) -> None:
        with self.manager() as manager:
            run.start()
            for stream in range(len(run.received)):
                self.add_request(manager, stream, streaming)
            is_open = set(map(str, range(len(run.received))))
            while is_open:
                time.sleep(LIMIT_PACE)
                result = manager.get_result(timeout=1)
                while result is not None:
                    stream = int(result.request_id)
                    run.got(stream, len(result.generated_tokens) - run.received[stream])
                    if result.is_finished():
                        is_open.remove(result.request_id)
                    result = manager.get_result(timeout=0)

    def silent(self, run: Run) -> None:
        self.limit(run, streaming=False)

    async def continuous(self, run: Run) -> None:
        async with self.engine("continuous") as engine:
            if isinstance(run, Watched):
                run.stamp(engine.manager, self.prompts)
            await self.read_all(run, engine.stream_text)

    async def one_by_one(self, run: Run) -> None:
        async with self.engine("none") as engine:
            await self.read_all(run, engine.stream_text)

    async def each_alone(self, run: Run) -> None:
        await self.read_all(
            run,
            lambda prompt, **kwargs: anystreamer.stream_text(
                self.model, self.tokenizer, prompt, **kwargs
            ),
        )

    async def read_all(self, run: Run, stream_text: Callable[..., Any]) -> None:
        async def read(index: int) -> None:
            prompt = {"input_ids": torch.tensor([self.prompts[index]])}
            run.called[index] = time.perf_counter()
            async with stream_text(prompt, max_new_tokens=self.tokens) as stream:
                async for chunk in stream:
                    run.got(index, len(chunk.token_ids), chunk.elapsed)

        await self.at_once(run, read)

    async def at_once(self, run: Run, read: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        async with anyio.create_task_group() as group:
            watch = anyio.CancelScope()
            if isinstance(run, Watched):

                async def beat() -> None:
                    with watch:
                        await run.beat()

                group.start_soon(beat)
            async with anyio.create_task_group() as readers:
                run.start()
                for index in range(len(run.received)):
                    readers.start_soon(read, index)
            watch.cancel()

    async def handlers(self, run: Run) -> None:
        """The manager's own way to asyncio, with the text made on the loop."""
        with self.manager() as manager:

            async def read(index: int) -> None:
                results: asyncio.Queue[Any] = asyncio.Queue()
                manager.register_result_handler(str(index), results.put_nowait)
                self.add_request(manager, index)
                decoder, result = anystreamer.text_decoder(self.tokenizer), None
                while result is None or not result.is_finished():
                    result = await results.get()
                    new = result.generated_tokens[run.received[index] :]
                    assert decoder.decode(new)
                    run.got(index, len(new))

            await self.at_once(run, read)

    async def served(self, run: Run) -> None:
        """As transformers serve: a thread, one request after the other, ``call_soon_threadsafe``.

        That is what transformers' streamer for asyncio calls for each piece.
        """
        streamers = [
            AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True) for _ in run.received
        ]

        def generate() -> None:
            for ids, streamer in zip(self.prompts, streamers, strict=False):
                self.model.generate(
                    torch.tensor([ids]), streamer=streamer, max_new_tokens=self.tokens
                )

        async def read(index: int) -> None:
            async for text in streamers[index]:
                if text:
                    run.got(index, len(text.split()))

        thread = threading.Thread(target=generate)

        async def read_after_start(index: int) -> None:
            if not index:
                thread.start()
            await read(index)

        await self.at_once(run, read_after_start)
        await to_thread.run_sync(thread.join)

    async def silent_beside(self, run: Run) -> None:
        """A loop with nothing to do but to wake, beside a manager that streams to nobody."""

        async with anyio.create_task_group() as group:
            group.start_soon(cast("Watched", run).beat)
            await to_thread.run_sync(self.silent, Run(len(run.received), self.tokens))
            group.cancel_scope.cancel()


@dataclass(frozen=True)
class Way:
    """A way for requests to go, on each of some loops or on none."""

    name: str
    call: Callable[[Bench, Run], Any]
    loops: tuple[str, ...] = ()
    is_batched: bool = True

    def go(self, bench: Bench, run: Run, loop: str) -> Run:
        if not loop:
            self.call(bench, run)
        else:
            backend, options = LOOPS[loop]
            anyio.run(self.call, bench, run, backend=backend, backend_options=options)
        return run


ALL = tuple(LOOPS)
ON_ASYNCIO = ("asyncio", "uvloop")
SILENT = Way("manager, silent", Bench.silent)
LIMIT = Way("manager, streaming", Bench.limit)
CONTINUOUS = Way('open_engine, "continuous"', Bench.continuous, ALL)
ONE_BY_ONE = Way('open_engine, "none"', Bench.one_by_one, ALL, is_batched=False)
EACH_ALONE = Way("stream_text each", Bench.each_alone, ALL, is_batched=False)
HANDLERS = Way("manager, result handlers", Bench.handlers, ON_ASYNCIO)
SERVED = Way("as transformers serve", Bench.served, ("asyncio",), is_batched=False)
WAYS = (SILENT, LIMIT, CONTINUOUS, HANDLERS, ONE_BY_ONE, EACH_ALONE, SERVED)
IDLE = Way("idle loop beside a silent manager", Bench.silent_beside, ALL)


def key(way: Way, loop: str) -> str:
    return f"{way.name} on {loop}" if loop else f"{way.name} (no loop)"


def speeds(bench: Bench, streams: int, rounds: int, few: int, loops: list[str]) -> Table:
    jobs = [(way, loop) for way in WAYS for loop in way.loops or ("",) if loop in loops or not loop]
    per_second: dict[str, list[float]] = {}
    ratios: dict[str, dict[str, list[float]]] = {}
    first: dict[str, list[float]] = {}
    for round_ in range(rounds):
        random.shuffle(jobs)
        runs = {
            key(way, loop): way.go(bench, Run(streams, bench.tokens), loop)
            for way, loop in jobs
            if way.is_batched or round_ < few
        }
        bases = {
            "limit": runs[key(LIMIT, "")],
            "each_alone": runs.get(key(EACH_ALONE, "asyncio")),
            "served": runs.get(key(SERVED, "asyncio")),
        }
        for name, run in runs.items():
            per_second.setdefault(name, []).append(run.per_second())
            first.setdefault(name, []).extend(run.first.values())
            to = ratios.setdefault(name, {})
            for base, other in bases.items():
                if other is not None:
                    to.setdefault(base, []).append(run.per_second() / other.per_second())
    best = {name: max(values) for name, values in per_second.items()}
    return {
        name: {
            "rounds": len(values),
            "tokens_per_second": quartiles(values),
            "ratio_to_limit": quartiles(ratios[name]["limit"]),
            # The best of all rounds is what a noisy machine disturbs least.
            "ratio_of_best": best[name] / best[key(LIMIT, "")],
            "ratio_to_stream_text_each": maybe(ratios[name].get("each_alone")),
            "ratio_to_transformers_serve": maybe(ratios[name].get("served")),
            "first_token_ms": None
            if name == key(SILENT, "")
            else {
                "median": 1e3 * percentile(first[name], 0.5),
                "p95": 1e3 * percentile(first[name], 0.95),
            },
        }
        for way in WAYS
        for loop in way.loops or ("",)
        if (values := per_second.get(name := key(way, loop)))
    }


def maybe(values: list[float] | None) -> dict[str, float] | None:
    return quartiles(values) if values else None


def watched(bench: Bench, streams: int, times: int, few: int, loops: list[str]) -> Table:
    results: Table = {}
    for loop in loops:
        for way in (IDLE, CONTINUOUS, EACH_ALONE):
            many = times if way.is_batched else min(1, few)
            if not many:
                continue
            runs = [Watched(streams, bench.tokens) for _ in range(many)]
            for run in runs:
                way.go(bench, run, loop)
            results[key(way, loop)] = {
                "times": many,
                "loop_late_ms": lateness([beat for run in runs for beat in run.beats]),
            }
            if way is not CONTINUOUS:
                continue
            apart = [float(each) for run in runs for each in run.apart] or [0.0]
            results[key(way, loop)] |= {
                "token_late_ms": lateness([late for run in runs for late in run.late]),
                "piece_late_as_told_ms": lateness(
                    [late for run in runs for late in run.late_as_told]
                ),
                "tokens_apart": {
                    "median": percentile(apart, 0.5),
                    "max": max(apart),
                    "max_in_manager": max(
                        (each for run in runs for each in run.made_apart), default=0
                    ),
                },
            }
    return results


def lateness(values: list[float]) -> dict[str, float]:
    return {
        "median": 1e3 * percentile(values, 0.5),
        "p99": 1e3 * percentile(values, 0.99),
        "max": 1e3 * max(values),
    }


def opening(times: int, loops: list[str]) -> Table:
    """Each in a process of its own: memory, and torch's and our own modules, come once."""
    results: Table = {}
    for loop in loops:
        each = []
        for _ in range(times):
            output = subprocess.run(
                [sys.executable, __file__, "--opening", loop], check=True, stdout=subprocess.PIPE
            ).stdout
            each.append(json.loads(output))
        results[loop] = {name: quartiles([one[name] for one in each]) for name in each[0]}
    return results


def open_once(loop: str) -> dict[str, float]:
    """Open an engine on the embedded model, and read its first answer."""
    model, tokenizer = cast("Any", load_demo())
    process, prompt = psutil.Process(), "An increasing sequence: one,"
    model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=5)  # torch's first one

    async def main() -> dict[str, float]:
        before, called = process.memory_info().rss, time.perf_counter()
        first = None
        async with (
            anystreamer.open_engine(model, tokenizer, batching="continuous") as engine,
            engine.stream_text(prompt, max_new_tokens=20) as stream,
        ):
            async for _ in stream:
                first = time.perf_counter() if first is None else first
            answered = time.perf_counter()
            after = process.memory_info().rss
        assert first is not None
        return {
            "mib": (after - before) / 2**20,
            "seconds_to_first_piece": first - called,
            "seconds_to_answer": answered - called,
        }

    backend, options = LOOPS[loop]
    return anyio.run(main, backend=backend, backend_options=options)


def goals(results: Table) -> list[Table]:
    """What is asked of an engine with continuous batching, and what was measured."""
    found: list[Table] = []

    def goal(what: str, measured: float, limit: float, at_least: bool = False) -> None:
        is_met = measured >= limit if at_least else measured <= limit
        sign = ">=" if at_least else "<="
        found.append(
            {"goal": what, "sign": sign, "limit": limit, "measured": measured, "is_met": is_met}
        )

    for loop in ("asyncio", "trio"):
        name = key(CONTINUOUS, loop)
        for streams in ("16", "64"):
            ratio = results["speed"][streams][name]["ratio_to_limit"]["median"]
            what = f"of the streaming manager's tokens per second, {streams} streams on {loop}"
            goal(what, ratio, OF_THE_LIMIT, at_least=True)
        for peer in ("stream_text each", "transformers serve"):
            ratio = results["speed"]["16"][name]["ratio_to_" + peer.replace(" ", "_")]["median"]
            goal(f"times {peer}, 16 streams on {loop}", ratio, TIMES_ONE_BY_ONE, at_least=True)
        for streams in map(str, STREAMS):
            late = results["watched"][streams][name]["token_late_ms"]["max"]
            goal(f"ms late at most, {streams} streams on {loop}", late, LATEST_MS)
        late = results["watched"]["64"][name]["loop_late_ms"]["p99"]
        goal(f"ms that the loop is late (p99), 64 streams on {loop}", late, LOOP_LATE_MS)
        opened = results["opening"][loop]
        goal(f"MiB to open it, on {loop}", opened["mib"]["median"], OPENING_MIB)
        seconds = opened["seconds_to_answer"]["median"]
        goal(f"seconds to its first answer, on {loop}", seconds, OPENING_SECONDS)
    return found


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--opening", choices=list(LOOPS), help=SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(TORCH_THREADS)
    if options.opening:
        print(json.dumps(open_once(options.opening)))
        return
    loops = ["asyncio", "trio"] if options.quick else list(LOOPS)
    # By the number of streams: rounds, those of them with all ways, and times that are watched.
    plan = (
        {1: (3, 1, 1), 4: (3, 0, 1), 16: (2, 1, 1), 64: (2, 0, 1)}
        if options.quick
        else {1: (9, 3, 2), 4: (9, 1, 2), 16: (9, 1, 3), 64: (6, 1, 2)}
    )
    # It warns of each manager for a model that has no end-of-sequence token.
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    bench = Bench(tokens=100)
    results: Table = {
        "environment": environment(options),
        "requests": {"prompt_tokens": PROMPT, "new_tokens": bench.tokens},
        "model": {"layers": LAYERS, "hidden": HIDDEN},
        "speed": {},
        "watched": {},
    }

    results["opening"] = opening(1 if options.quick else 2, loops)
    write(results, options.out)
    # torch's modules hold so many objects that to collect them takes longer than a short run, and
    # a manager that stops does it twice.
    gc.freeze()
    speeds(bench, 2, 1, 1, loops)  # warms up
    for streams in STREAMS:
        rounds, few, times = plan[streams]
        results["speed"][str(streams)] = speeds(bench, streams, rounds, few, loops)
        results["watched"][str(streams)] = watched(bench, streams, times, few, loops)
        write(results, options.out)
    results["goals"] = goals(results)
    write(results, options.out)
    show("engines", results)


if __name__ == "__main__":
    main()
