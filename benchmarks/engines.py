"""Many requests at once: tokens per second, first tokens, how late tokens are, and the loop.

Time counts from the first request to the last token at its consumer, without opening the engine or
the manager. The ways that run one request after the other take part in the first rounds only,
because their speed does not depend on the number of requests. How late tokens and the loop are is
measured separately, because watching costs time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
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

from .method import (
    ALL_LOOPS,
    ON_ASYNCIO,
    Parts,
    Table,
    compare,
    compared,
    note_lateness,
    on_loops,
    run_anew,
    run_on,
    summary,
    take_turns,
)
from .models import make_model, make_tokenizer

LAYERS, HIDDEN = 4, 128
PROMPT = 16  # tokens
TOKENS = 100  # of an answer
STREAMS = (1, 4, 16, 64)  # at once

# The limit's thread takes the results this often (seconds). A thread that wakes up for each token
# would take more time in the interpreter from the model's thread.
LIMIT_INTERVAL = 0.005


class Run:
    """One turn of one way: when the tokens of each stream came to their consumer.

    If it is watched, also when the manager had made them, and how late the loop was.
    """

    def __init__(self, streams: int, is_watched: bool = False) -> None:
        self.is_watched = is_watched
        self.started = 0.0
        self.came: list[list[float]] = [[] for _ in range(streams)]
        self.made: list[list[float]] = [[] for _ in range(streams)]
        self.loop_late_ms: list[float] = []

    def start(self) -> None:
        self.started = time.perf_counter()

    def got(self, stream: int, tokens: int) -> None:
        self.came[stream] += [time.perf_counter()] * tokens

    def figures(self) -> Table:
        assert {len(times) for times in self.came} == {TOKENS}
        seconds = max(times[-1] for times in self.came) - self.started
        return {
            "tokens_per_second": TOKENS * len(self.came) / seconds,
            "first_token_ms": [1e3 * (times[0] - self.started) for times in self.came],
        }

    def lateness(self) -> Table:
        both = [zip(*each, strict=True) for each in zip(self.came, self.made, strict=True)]
        late = [1e3 * (came - made) for times in both for came, made in times]
        return {"token_late_ms": late, "loop_late_ms": self.loop_late_ms}

    def watch(self, manager: Any, prompts: list[list[int]]) -> None:
        """Note when a manager hands out tokens. Prompts differ, and identify the stream."""
        deliver = manager.output_router.deliver_batch
        made = {tuple(prompt): times for prompt, times in zip(prompts, self.made, strict=False)}

        def deliver_batch(outputs: list[Any]) -> None:
            now = time.perf_counter()
            for output in outputs:
                times = made[tuple(output.prompt_ids)]
                times.extend([now] * (len(output.generated_tokens) - len(times)))
            deliver(outputs)

        manager.output_router.deliver_batch = deliver_batch


class Bench:
    """A model, and the ways for requests to it."""

    def __init__(self) -> None:
        self.model: Any = make_model(LAYERS, HIDDEN)
        self.tokenizer = make_tokenizer()
        torch.manual_seed(1)
        self.prompts: list[list[int]] = torch.randint(1, 500, (max(STREAMS), PROMPT)).tolist()
        self._new_manager = self.model.init_continuous_batching
        self.model.init_continuous_batching = self._manager_of_engine
        anyio.run(self.engine, Run(0))  # an engine's arguments for its manager

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

    def add_request(self, manager: Any, stream: int) -> None:
        prompt, kwargs = self.prompts[stream], {"max_new_tokens": TOKENS, "eos_token_id": -1}
        manager.add_request(prompt, request_id=str(stream), streaming=True, **kwargs)

    def limit(self, run: Run) -> None:
        with self.manager() as manager:
            run.start()
            unfinished = len(run.came)
            for stream in range(unfinished):
                self.add_request(manager, stream)
            while unfinished:
                time.sleep(LIMIT_INTERVAL)
                result = manager.get_result(timeout=1)
                while result is not None:
                    stream = int(result.request_id)
                    run.got(stream, len(result.generated_tokens) - len(run.came[stream]))
                    unfinished -= result.is_finished()
                    result = manager.get_result(timeout=0)

    async def at_once(self, run: Run, read: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Call *read* for each stream, all at once."""
        async with anyio.create_task_group() as group:
            if run.is_watched:
                group.start_soon(note_lateness, run.loop_late_ms)
            async with anyio.create_task_group() as readers:
                run.start()
                for index in range(len(run.came)):
                    readers.start_soon(read, index)
            group.cancel_scope.cancel()

    async def read_all(self, run: Run, stream_text: Callable[..., Any]) -> None:
        async def read(index: int) -> None:
            prompt = {"input_ids": torch.tensor([self.prompts[index]])}
            async with stream_text(prompt, max_new_tokens=TOKENS) as stream:
                async for chunk in stream:
                    run.got(index, len(chunk.token_ids))

        await self.at_once(run, read)

    async def engine(self, run: Run, batching: Any = "continuous") -> None:
        async with anystreamer.open_engine(self.model, self.tokenizer, batching=batching) as engine:
            if run.is_watched:
                run.watch(self.manager_of_engine, self.prompts)
            await self.read_all(run, engine.stream_text)

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
                    new = result.generated_tokens[len(run.came[index]) :]
                    assert decoder.decode(new)
                    run.got(index, len(new))

            await self.at_once(run, read)

    async def served(self, run: Run) -> None:
        """Like ``transformers serve``: a thread, one request after the other.

        transformers' streamer for asyncio calls ``call_soon_threadsafe`` for each part.
        """
        streamers = [AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True) for _ in run.came]

        def generate() -> None:
            for ids, streamer in zip(self.prompts, streamers, strict=False):
                self.model.generate(torch.tensor([ids]), streamer=streamer, max_new_tokens=TOKENS)

        async def read(index: int) -> None:
            async for text in streamers[index]:
                if text:
                    run.got(index, len(text.split()))

        async with anyio.create_task_group() as group:
            group.start_soon(to_thread.run_sync, generate)  # when this task waits for the readers
            await self.at_once(run, read)

    def ways(self, streams: int) -> dict[str, Callable[[], Table]]:
        def turn(loop: str | None, way: Callable[[Run], Any]) -> Table:
            run = Run(streams)
            run_on(loop, way, run) if loop else way(run)
            return run.figures()

        ways = {
            'open_engine, "continuous"': (self.engine, ALL_LOOPS),
            "manager, result handlers": (self.handlers, ON_ASYNCIO),
            'open_engine, "none"': (partial(self.engine, batching="none"), ALL_LOOPS),
            "stream_text each": (self.each_alone, ALL_LOOPS),
            "as transformers serve": (self.served, ("asyncio",)),
        }
        return {LIMIT: partial(turn, None, self.limit)} | on_loops(ways, turn)


LIMIT = "manager, streaming (no loop)"
ONE_BY_ONE = ('open_engine, "none"', "stream_text each", "as transformers serve")


def speeds(bench: Bench, streams: int, rounds: int, few: int) -> Table:
    """Compare all ways in *few* of the rounds, and those with batches in all of them."""
    ways = bench.ways(streams)
    batched = {name: way for name, way in ways.items() if not name.startswith(ONE_BY_ONE)}
    runs = take_turns(ways, few)
    for name, more in take_turns(batched, rounds - few).items():
        runs[name] += more
    return compared(
        runs,
        "tokens_per_second",
        limit=LIMIT,
        stream_text_each="stream_text each on asyncio",
        transformers_serve="as transformers serve on asyncio",
    )


def watched(bench: Bench, streams: int, times: int, loop: str) -> Table:
    runs = [Run(streams, is_watched=True) for _ in range(times)]
    for run in runs:
        run_on(loop, bench.engine, run)
    return {"times": times} | summary([run.lateness() for run in runs])


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


TALK = 2_000  # tokens of a conversation before its second turn


async def second_turn(bench: Bench, **settings: Any) -> Table:
    """The time to the first token of the second turn of a conversation."""
    ids = torch.randint(1, 500, (TALK,)).tolist()
    async with anystreamer.open_engine(bench.model, bench.tokenizer, **settings) as engine:
        for _ in range(2):
            prompt = {"input_ids": torch.tensor([ids])}
            async with engine.stream_text(prompt, max_new_tokens=20) as stream:
                await stream.read()
            ids = ids + stream.token_ids + torch.randint(1, 500, (PROMPT,)).tolist()
    timing: Any = stream.timing
    return {"first_token_ms": 1e3 * timing.first_token}


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
    return compare(ways, rounds, "first_token_ms", continuous='open_engine, "continuous"')


def measure(is_quick: bool) -> Parts:
    # Rounds, those of them with all ways, and times that are watched.
    rounds, few, times = (2, 1, 1) if is_quick else (9, 3, 2)
    # Each in a new process, because memory and modules are loaded once.
    open_anew = {loop: partial(run_anew, loop, open_once) for loop in ALL_LOOPS}
    yield "opening", compare(open_anew, 1 if is_quick else 2)
    # It warns of each manager for a model that has no end-of-sequence token.
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    bench = Bench()
    # torch's modules hold so many objects that collecting them takes longer than a short run. A
    # manager does it twice when it stops.
    gc.freeze()
    speeds(bench, 2, 1, 1)  # warms up
    for streams in STREAMS:
        for name, row in speeds(bench, streams, rounds, few).items():
            yield "speed", name, str(streams), row
        for loop in ALL_LOOPS:
            row = watched(bench, streams, times, loop)
            yield "watched", str(streams), f'"continuous" on {loop}', row
    yield "second_turn", second_turns(bench, 3 if is_quick else 9)
