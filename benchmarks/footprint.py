"""What an import takes, and the memory and threads of a stream that waits.

The models are scripted, and need no memory. `producers.py` uses the crowds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from typing import Any

import anyio
import psutil

import anystreamer
from anystreamer.testing import Gate, ScriptedModel

from .method import ALL_LOOPS, Parts, Table, compare, on_loops, run_anew

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


THEIRS = "a thread with transformers' streamer"
WAITING = {  # each with the loops that it runs on
    "stream_text": ALL_LOOPS,
    "an engine's": ALL_LOOPS,
    "stream_from_thread": ALL_LOOPS,
    THEIRS: ("asyncio",),
}


async def growth(kind: str) -> Table:
    """What each of `STREAMS` streams adds that wait."""
    gate, end = Gate(), threading.Event()
    model = ScriptedModel([gate])
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(anystreamer.open_engine(model, model.tokenizer))
        openers: dict[str, Callable[[], Any]] = {
            "stream_text": partial(anystreamer.stream_text, model, model.tokenizer, "a prompt"),
            "an engine's": partial(engine.stream_text, "a prompt"),
            "stream_from_thread": lambda: anystreamer.stream_from_thread(lambda *_: end.wait()),
            THEIRS: partial(transformers_streamer, model.tokenizer, end),
        }
        looks = []
        for count in (WARM, STREAMS):
            for _ in range(count):
                await stack.enter_async_context(openers[kind]())
            await anyio.wait_all_tasks_blocked()
            looks.append(look())
        stack.callback(gate.open)  # before the streams are left
        stack.callback(end.set)
        (memory, threads), (more_memory, more_threads) = looks
        return {
            "kib": (more_memory - memory) / STREAMS / 1024,
            "threads": (more_threads - threads) / STREAMS,
        }


def transformers_streamer(tokenizer: Any, end: threading.Event) -> Any:
    """A thread and a streamer, as in transformers' documentation."""
    from transformers import AsyncTextIteratorStreamer

    streamer = AsyncTextIteratorStreamer(tokenizer)
    threading.Thread(target=lambda _: end.wait(), args=(streamer,)).start()
    return nullcontext()


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


def measure(is_quick: bool) -> Parts:
    ways = {f"`{statement}`": partial(timed, statement) for statement in IMPORTS}
    rounds = 5 if is_quick else 25  # and one before, which reads the files
    yield "import", compare(ways, rounds, "ms", warm_up=1, anyio="`import anyio`")
    kinds = {kind: (partial(growth, kind), loops) for kind, loops in WAITING.items()}
    yield "memory", compare(on_loops(kinds, run_anew), 1 if is_quick else 5)
