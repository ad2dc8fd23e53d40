"""What an import takes, and the memory and threads of a stream that waits.

Each import runs in a new interpreter. Its ratio is to ``import anyio`` in the same round. Memory is
the growth of a process (resident set) by 200 streams, divided by them: streams of one model, of
which all except one wait for their turn, and threads with transformers' streamer that wait in
``generate()``. The models are scripted, and need no memory. `producers.py` uses the crowds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from typing import Any

import anyio
import psutil

import anystreamer
from anystreamer.demo import load_demo
from anystreamer.testing import Gate, ScriptedModel

from .method import (
    ALL_LOOPS,
    Table,
    compared,
    in_new_process,
    on_loops,
    run_on,
    summary,
    take_turns,
)

STREAMS = 200
LIMIT = 10  # of streams that share a limiter, in a crowd
CALM, SECONDS = 5.0, 3.0  # until those that look for space do so rarely, and what is measured
WARM = 5  # streams before the first look, so that what is allocated once is there

IMPORTS = (
    "import anyio",
    "import anystreamer",
    "from anystreamer import stream_text",
    "from transformers import TextIteratorStreamer",
)
TIMED = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"


def timed(statement: str) -> Table:
    command = [sys.executable, "-c", TIMED.format(statement)]
    # As after an installation: else each import would compile what has no bytecode.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env).stdout
    return {"ms": 1e3 * float(output)}


def look() -> tuple[int, int]:
    process = psutil.Process()
    return process.memory_info().rss, process.num_threads()


async def growth(open_one: Callable[[], Any], release: Callable[[], None]) -> Table:
    """What each of `STREAMS` streams adds. *release* lets their threads end."""
    async with AsyncExitStack() as stack:
        looks = []
        for count in (WARM, STREAMS):
            for _ in range(count):
                await stack.enter_async_context(open_one())
            await anyio.wait_all_tasks_blocked()
            looks.append(look())
        stack.callback(release)  # it is called before the streams are left
        (memory, threads), (more_memory, more_threads) = looks
        return {
            "kib": (more_memory - memory) / STREAMS / 1024,
            "threads": (more_threads - threads) / STREAMS,
        }


async def stream_text() -> Table:
    gate = Gate()
    model = ScriptedModel([gate])
    return await growth(
        lambda: anystreamer.stream_text(model, model.tokenizer, "a prompt"), gate.open
    )


async def engine() -> Table:
    gate = Gate()
    model = ScriptedModel([gate])
    async with anystreamer.open_engine(model, model.tokenizer) as opened:
        return await growth(lambda: opened.stream_text("a prompt"), gate.open)


async def bridge() -> Table:
    end = threading.Event()

    def open_one() -> Any:
        return anystreamer.stream_from_thread(lambda emit, should_stop: end.wait())

    return await growth(open_one, end.set)


async def transformers_streamer() -> Table:
    """A thread and a streamer for each, as in transformers' documentation."""
    from transformers import AsyncTextIteratorStreamer

    _, tokenizer = load_demo()
    end = threading.Event()

    def generate(streamer: object) -> None:
        end.wait()

    def open_one() -> Any:
        streamer = AsyncTextIteratorStreamer(tokenizer)
        threading.Thread(target=generate, args=(streamer,)).start()
        return nullcontext()

    return await growth(open_one, end.set)


WAITING = {
    "stream_text": (stream_text, ALL_LOOPS),
    "an engine's": (engine, ALL_LOOPS),
    "stream_from_thread": (bridge, ALL_LOOPS),
    "a thread with transformers' streamer": (transformers_streamer, ("asyncio",)),
}


async def crowd(kind: str, streams: int) -> Table:
    """Open them, and measure while nothing happens.

    *kind*: ``silent`` streams have a producer that blocks and a consumer that waits, ``full`` ones
    a bounded buffer that nobody reads, and ``limited`` ones are silent, and share a limiter.
    """
    over, opened = threading.Event(), []
    limiter = anyio.CapacityLimiter(LIMIT) if kind == "limited" else None

    def produce(emit: Callable[[int], None], _: object) -> None:
        emit(0)
        while kind == "full" and not over.is_set():
            emit(0)
        over.wait()

    async def hold() -> None:
        async with anystreamer.stream_from_thread(
            produce, max_buffer_size=10, limiter=limiter
        ) as stream:
            opened.append(stream)
            if kind == "full":
                await anyio.sleep_forever()
            async for _ in stream:
                pass

    memory, threads = look()
    async with anyio.create_task_group() as tasks:
        for _ in range(streams):
            tasks.start_soon(hold)
        while len(opened) < streams:
            await anyio.sleep(0.01)
        await anyio.sleep(CALM)
        started, cpu = time.perf_counter(), time.process_time()
        await anyio.sleep(SECONDS)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        now_memory, now_threads = look()
        over.set()
        tasks.cancel_scope.cancel()
    return {
        "percent_of_a_core": 100 * share,
        "threads": now_threads - threads,
        "mb": (now_memory - memory) / 1e6,
    }


def measure(is_quick: bool) -> Iterator[Table]:
    ways = {f"`{statement}`": partial(timed, statement) for statement in IMPORTS}
    took = take_turns(ways, 5 if is_quick else 25, warm_up=1)  # the first one reads the files
    yield {"import": compared(took, "ms", anyio="`import anyio`")}
    grow = on_loops(WAITING, partial(in_new_process, run_on))
    turns = take_turns(grow, 1 if is_quick else 5)
    yield {"memory": {name: summary(runs) for name, runs in turns.items()}}
