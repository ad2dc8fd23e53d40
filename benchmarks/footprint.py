"""What an import takes, and the memory and threads of a stream that waits.

Each import runs in a new interpreter. Its ratio is to ``import anyio`` in the same round. Memory is
the growth of a process (resident set) by 200 streams, divided by them: streams of one model, of
which all except one wait for their turn, and threads with transformers' streamer that wait in
``generate()``. The models are scripted, and need no memory.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from typing import Any

import anyio
import psutil

from .method import ALL_LOOPS, Table, in_new_process, quartiles, ratio, run_on, take_turns

STREAMS = 200
WARM = 5  # streams before the first look, so that what is allocated once is there

IMPORTS = (
    "import anyio",
    "import anystreamer",
    "from anystreamer import stream_text",
    "from transformers import TextIteratorStreamer",
)
TIMED = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"


def milliseconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    return 1e3 * float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def imports(rounds: int) -> Table:
    ways = {statement: partial(milliseconds, statement) for statement in IMPORTS}
    took = take_turns(ways, rounds, warm_up=1)  # the first one reads the files
    return {
        name: {"ms": quartiles(values), "ratio": ratio(values, took["import anyio"])}
        for name, values in took.items()
    }


def look() -> tuple[int, int]:
    process = psutil.Process()
    return process.memory_info().rss, process.num_threads()


async def growth(open_one: Callable[[], Any], release: Callable[[], None]) -> dict[str, float]:
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


async def stream_text() -> dict[str, float]:
    from anystreamer import stream_text
    from anystreamer.testing import Gate, ScriptedModel

    gate = Gate()
    model = ScriptedModel([gate])
    return await growth(lambda: stream_text(model, model.tokenizer, "a prompt"), gate.open)


async def engine() -> dict[str, float]:
    from anystreamer import open_engine
    from anystreamer.testing import Gate, ScriptedModel

    gate = Gate()
    model = ScriptedModel([gate])
    async with open_engine(model, model.tokenizer) as opened:
        return await growth(lambda: opened.stream_text("a prompt"), gate.open)


async def bridge() -> dict[str, float]:
    from anystreamer import stream_from_thread

    end = threading.Event()
    return await growth(lambda: stream_from_thread(lambda emit, should_stop: end.wait()), end.set)


async def transformers_streamer() -> dict[str, float]:
    """A thread and a streamer for each, as in transformers' documentation."""
    from transformers import AsyncTextIteratorStreamer

    from anystreamer.demo import load_demo

    _, tokenizer = load_demo()
    end = threading.Event()

    def generate(streamer: object) -> None:
        end.wait()

    def open_one() -> Any:
        streamer = AsyncTextIteratorStreamer(tokenizer)
        threading.Thread(target=generate, args=(streamer,)).start()
        return nullcontext()

    return await growth(open_one, end.set)


WAITING: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "stream_text": (stream_text, ALL_LOOPS),
    "an engine's": (engine, ALL_LOOPS),
    "stream_from_thread": (bridge, ALL_LOOPS),
    "a thread with transformers' streamer": (transformers_streamer, ("asyncio",)),
}


def memory(rounds: int) -> Table:
    ways = {
        f"{name} on {loop}": partial(in_new_process, run_on, loop, grow)
        for name, (grow, loops) in WAITING.items()
        for loop in loops
    }
    return {
        name: {
            "kib": quartiles([one["kib"] for one in each]),
            "threads": each[0]["threads"],
        }
        for name, each in take_turns(ways, rounds).items()
    }


def measure(is_quick: bool) -> Iterator[Table]:
    yield {"import": imports(5 if is_quick else 25)}
    yield {"memory": memory(1 if is_quick else 5)}
