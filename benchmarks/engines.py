"""Many requests at once: tokens per second, first tokens, how late tokens are, and the loop.

The same requests, all at once, go through each way: an engine with continuous batching and one
without, a `stream_text` for each request, other usual ways, and transformers' continuous batching
manager alone. The last, streaming to a thread that drops everything, is the limit. The speed of a
way is its tokens per second divided by the limit's in the same round. Time counts from the first
request to the last token at its consumer, without opening the engine or the manager. The ways that
run one request after the other take part in the first rounds only, because their speed does not
depend on the number of requests.

Separately, because watching costs time: how late tokens reach their consumers, from the moment when
the manager hands them out, how late the loop wakes a task that sleeps for a millisecond, and how
many tokens the streams are apart. Also what it takes to open an engine on the embedded model, in
new processes; and how long the second turn of a long conversation takes to its first token.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import anyio
import psutil
import torch
from anyio import to_thread
from transformers import AsyncTextIteratorStreamer

import anystreamer
from anystreamer.demo import load_demo

from . import method
from .method import ALL_LOOPS, ON_ASYNCIO, Table, percentiles, quartiles, run_on, take_turns
from .models import make_model, make_tokenizer

LAYERS, HIDDEN = 4, 128
PROMPT = 16  # tokens
TOKENS = 100  # of an answer
MOST = 64  # streams at once

# The limit's thread takes the results this often (seconds). A thread that wakes up for each token
# would take more time in the interpreter from the model's thread.
LIMIT_INTERVAL = 0.005

BEAT = 0.001  # seconds that the heartbeat of the loop sleeps


class Run:
    """One turn of one way: the tokens of each stream, and when they came."""

    def __init__(self, streams: int) -> None:
        self.received = [0] * streams
        self.first: dict[int, float] = {}  # by stream: seconds until its first token
        self.started = self.ended = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def got(self, stream: int, tokens: int) -> None:
        self.ended = time.perf_counter()
        self.first.setdefault(stream, self.ended - self.started)
        self.received[stream] += tokens

    def per_second(self) -> float:
        assert self.received == [TOKENS] * len(self.received)
        return sum(self.received) / (self.ended - self.started)


class WatchedRun(Run):
    """A turn that is watched: how late tokens and the loop are, and how far apart the streams."""

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        self.made: list[list[float]] = [[] for _ in range(streams)]  # the time of each token
        self.late: list[float] = []
        self.beats: list[float] = []
        self.apart, self.made_apart = [0], [0]

    def got(self, stream: int, tokens: int) -> None:
        now, begin = time.perf_counter(), self.received[stream]
        self.late.extend(now - made for made in self.made[stream][begin : begin + tokens])
        super().got(stream, tokens)

    def watch(self, manager: Any, prompts: list[list[int]]) -> None:
        """Note when a manager hands out tokens. Prompts differ, and identify the stream."""
        add, deliver = manager.add_request, manager.output_router.deliver_batch
        made: dict[str, list[float]] = {}

        def add_request(ids: list[int], *, request_id: str, **kwargs: Any) -> Any:
            made[request_id] = self.made[prompts.index(list(ids))]
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
            if least and most < TOKENS:
                made = [len(times) for times in self.made]
                self.apart.append(most - least)
                self.made_apart.append(max(made) - min(made))


class Bench:
    """A model, and the ways for requests to it."""

    def __init__(self) -> None:
        self.model: Any = make_model(LAYERS, HIDDEN)
        self.tokenizer = make_tokenizer()
        torch.manual_seed(1)
        self.prompts: list[list[int]] = torch.randint(1, 500, (MOST, PROMPT)).tolist()
        self._new_manager = self.model.init_continuous_batching
        self.model.init_continuous_batching = self._manager_of_engine
        anyio.run(self.continuous, Run(0))  # an engine's arguments for its manager

    def _manager_of_engine(self, **kwargs: Any) -> Any:
        """Keep an engine's manager, and its arguments, which the manager changes."""
        self.arguments = deepcopy(kwargs)
        self.manager_of_engine = self._new_manager(**kwargs)
        return self.manager_of_engine

    @contextmanager
    def manager(self) -> Iterator[Any]:
        """transformers' manager, as an engine makes it."""
        with self.model.continuous_batching_context_manager(**deepcopy(self.arguments)) as manager:
            while manager.batch_processor is None:  # until its thread has made the cache
                time.sleep(0.001)
            yield manager

    def add_request(self, manager: Any, stream: int, streaming: bool = True) -> None:
        prompt, kwargs = self.prompts[stream], {"max_new_tokens": TOKENS, "eos_token_id": -1}
        manager.add_request(prompt, request_id=str(stream), streaming=streaming, **kwargs)

    def limit(self, run: Run, streaming: bool = True) -> None:
        with self.manager() as manager:
            run.start()
            unfinished = len(run.received)
            for stream in range(unfinished):
                self.add_request(manager, stream, streaming)
            while unfinished:
                time.sleep(LIMIT_INTERVAL)
                result = manager.get_result(timeout=1)
                while result is not None:
                    stream = int(result.request_id)
                    run.got(stream, len(result.generated_tokens) - run.received[stream])
                    unfinished -= result.is_finished()
                    result = manager.get_result(timeout=0)

    def silent(self, run: Run) -> None:
        self.limit(run, streaming=False)

    async def at_once(
        self, run: Run, read: Callable[[int], Coroutine[Any, Any, None]], begin: Any = None
    ) -> None:
        """Call *read* for each stream, all at once."""
        async with anyio.create_task_group() as group:
            if isinstance(run, WatchedRun):
                group.start_soon(run.beat)
            async with anyio.create_task_group() as readers:
                run.start()
                for index in range(len(run.received)):
                    readers.start_soon(read, index)
                if begin:
                    begin()
            group.cancel_scope.cancel()

    async def read_all(self, run: Run, stream_text: Callable[..., Any]) -> None:
        async def read(index: int) -> None:
            prompt = {"input_ids": torch.tensor([self.prompts[index]])}
            async with stream_text(prompt, max_new_tokens=TOKENS) as stream:
                async for chunk in stream:
                    run.got(index, len(chunk.token_ids))

        await self.at_once(run, read)

    async def engine(self, run: Run, batching: Any) -> None:
        async with anystreamer.open_engine(self.model, self.tokenizer, batching=batching) as engine:
            if isinstance(run, WatchedRun):
                run.watch(self.manager_of_engine, self.prompts)
            await self.read_all(run, engine.stream_text)

    async def continuous(self, run: Run) -> None:
        await self.engine(run, "continuous")

    async def one_by_one(self, run: Run) -> None:
        await self.engine(run, "none")

    async def each_alone(self, run: Run) -> None:
        await self.read_all(run, partial(anystreamer.stream_text, self.model, self.tokenizer))

    async def handlers(self, run: Run) -> None:
        """The manager's own handlers for asyncio, with the text decoded on the loop."""
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
        """Like ``transformers serve``: a thread, one request after the other.

        transformers' streamer for asyncio calls ``call_soon_threadsafe`` for each part.
        """
        streamers = [
            AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True) for _ in run.received
        ]

        def generate() -> None:
            for ids, streamer in zip(self.prompts, streamers, strict=False):
                self.model.generate(torch.tensor([ids]), streamer=streamer, max_new_tokens=TOKENS)

        async def read(index: int) -> None:
            async for text in streamers[index]:
                if text:
                    run.got(index, len(text.split()))

        thread = threading.Thread(target=generate)
        await self.at_once(run, read, thread.start)
        await to_thread.run_sync(thread.join)

    def ways(self, loops: tuple[str, ...]) -> dict[str, Callable[[Run], Any]]:
        """Each way, on each of *loops* that it can run on."""
        ways = {
            'open_engine, "continuous"': (self.continuous, ALL_LOOPS),
            "manager, result handlers": (self.handlers, ON_ASYNCIO),
            'open_engine, "none"': (self.one_by_one, ALL_LOOPS),
            "stream_text each": (self.each_alone, ALL_LOOPS),
            "as transformers serve": (self.served, ("asyncio",)),
        }
        return {"manager, silent (no loop)": self.silent, LIMIT: self.limit} | {
            f"{name} on {loop}": partial(run_on, loop, way)
            for name, (way, can_run_on) in ways.items()
            for loop in can_run_on
            if loop in loops
        }


LIMIT = "manager, streaming (no loop)"
EACH_ALONE, SERVED = "stream_text each on asyncio", "as transformers serve on asyncio"
ONE_BY_ONE = ('open_engine, "none"', "stream_text each", "as transformers serve")


def speeds(bench: Bench, streams: int, rounds: int, few: int, loops: tuple[str, ...]) -> Table:
    """Compare all ways in *few* of the rounds, and those with batches in all of them."""

    def turn(way: Callable[[Run], Any]) -> Run:
        run = Run(streams)
        way(run)
        return run

    ways = {name: partial(turn, way) for name, way in bench.ways(loops).items()}
    batched = {name: way for name, way in ways.items() if not name.startswith(ONE_BY_ONE)}
    runs = take_turns(ways, few)
    for name, more in take_turns(batched, rounds - few).items():
        runs[name] += more
    speed = {name: [run.per_second() for run in each] for name, each in runs.items()}
    return {name: figures(name, each, speed) for name, each in runs.items() if each}


def figures(name: str, runs: list[Run], speed: dict[str, list[float]]) -> Table:
    def ratio_to(peer: str) -> dict[str, float] | None:
        return method.ratio(speed[name], speed[peer]) if speed[peer] else None

    first = [1e3 * each for run in runs for each in run.first.values()]
    return {
        "rounds": len(runs),
        "tokens_per_second": quartiles(speed[name]),
        "ratio_to_limit": ratio_to(LIMIT),
        # Other work on the machine disturbs the best of all rounds least.
        "ratio_of_best": max(speed[name]) / max(speed[LIMIT]),
        "ratio_to_stream_text_each": ratio_to(EACH_ALONE),
        "ratio_to_transformers_serve": ratio_to(SERVED),
        "first_token_ms": None if "silent" in name else percentiles(first, 95),
    }


def watched(bench: Bench, streams: int, times: int, loop: str) -> Table:
    runs = [WatchedRun(streams) for _ in range(times)]
    for run in runs:
        run_on(loop, bench.continuous, run)
    return {
        "times": times,
        "loop_late_ms": percentiles([1e3 * each for run in runs for each in run.beats], 99, 100),
        "token_late_ms": percentiles([1e3 * each for run in runs for each in run.late], 99, 100),
        "tokens_apart": percentiles([float(each) for run in runs for each in run.apart], 100)
        | {"max_in_manager": max(each for run in runs for each in run.made_apart)},
    }


async def open_once() -> dict[str, float]:
    """Open an engine on the embedded model, and read its first answer."""
    model: Any
    model, tokenizer = load_demo()
    process, prompt = psutil.Process(), "An increasing sequence: one,"
    model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=5)  # torch's first one
    before, called, first = process.memory_info().rss, time.perf_counter(), None
    async with (
        anystreamer.open_engine(model, tokenizer, batching="continuous") as engine,
        engine.stream_text(prompt, max_new_tokens=20) as stream,
    ):
        async for _ in stream:
            first = first or time.perf_counter()
        answered, after = time.perf_counter(), process.memory_info().rss
    assert first is not None
    return {
        "mib": (after - before) / 2**20,
        "seconds_to_first_piece": first - called,
        "seconds_to_answer": answered - called,
    }


def opening(times: int, loops: tuple[str, ...]) -> Table:
    """Each in a new process, because memory and modules are loaded once."""
    ways = {loop: partial(method.in_new_process, run_on, loop, open_once) for loop in loops}
    return {
        loop: {name: quartiles([one[name] for one in each]) for name in each[0]}
        for loop, each in take_turns(ways, times).items()
    }


TALK = 2_000  # tokens of a conversation before its second turn


async def second_turn(bench: Bench, **settings: Any) -> float:
    """Milliseconds until the first token of the second turn of a conversation."""
    ids = torch.randint(1, 500, (TALK,)).tolist()
    async with anystreamer.open_engine(bench.model, bench.tokenizer, **settings) as engine:
        for _ in range(2):
            prompt, first = {"input_ids": torch.tensor([ids])}, None
            started = time.perf_counter()
            async with engine.stream_text(prompt, max_new_tokens=20) as stream:
                async for _ in stream:
                    first = first or time.perf_counter()
            assert first is not None
            ids = ids + stream.token_ids + torch.randint(1, 500, (PROMPT,)).tolist()
    return 1e3 * (first - started)


def second_turns(bench: Bench, rounds: int) -> Table:
    """The second turn with each kind of cache, as a ratio to continuous batching's."""
    kinds: dict[str, dict[str, Any]] = {
        'open_engine, "continuous"': {"batching": "continuous"},
        'open_engine, "none"': {},
        'open_engine, "none", reuse_cache=False': {"reuse_cache": False},
    }
    ways = {
        name: partial(run_on, "asyncio", partial(second_turn, bench, **settings))
        for name, settings in kinds.items()
    }
    times = take_turns(ways, rounds)
    peer = times['open_engine, "continuous"']
    return {
        name: {"first_token_ms": quartiles(each), "ratio": method.ratio(each, peer)}
        for name, each in times.items()
    }


def measure(is_quick: bool) -> Iterator[Table]:
    loops = ("asyncio", "trio") if is_quick else ALL_LOOPS
    # By the number of streams: rounds, those of them with all ways, and times that are watched.
    plan = (
        {1: (3, 1, 1), 4: (3, 0, 1), 16: (2, 1, 1), MOST: (2, 0, 1)}
        if is_quick
        else {1: (9, 3, 2), 4: (9, 1, 2), 16: (9, 1, 3), MOST: (6, 1, 2)}
    )
    yield {"opening": opening(1 if is_quick else 2, loops)}
    # It warns of each manager for a model that has no end-of-sequence token.
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    bench = Bench()
    # torch's modules hold so many objects that collecting them takes longer than a short run. A
    # manager does it twice when it stops.
    gc.freeze()
    speeds(bench, 2, 1, 1, loops)  # warms up
    results: Table = {"speed": {}, "watched": {}}
    for streams, (rounds, few, times) in plan.items():
        results["speed"][str(streams)] = speeds(bench, streams, rounds, few, loops)
        results["watched"][str(streams)] = {
            f'open_engine, "continuous" on {loop}': watched(bench, streams, times, loop)
            for loop in loops
        }
        yield results
    results["second_turn"] = second_turns(bench, 3 if is_quick else 9)
    yield results
