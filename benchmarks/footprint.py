"""What an import takes, and what a stream that waits keeps of memory and threads.

    python benchmarks/footprint.py [--quick] [--out benchmarks/results/footprint.json]

Each import in an interpreter of its own, in rounds in which each has a turn; the ratio is that to
``import anyio`` in the same round. Memory is the growth of the resident set of a process by 200
streams, for each of them: those of one model wait for their turn, all but one, and a thread of
transformers' streamer waits in ``generate()`` for what the model makes. A model that is scripted
takes nothing itself.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from argparse import SUPPRESS
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import psutil
from common import LOOPS, Table, environment, options_of, quartiles, write
from tables import show

STREAMS = 200
WARM = 5  # streams before the first look: what there is once is there by then

IMPORTS = (
    "import anyio",
    "import anystreamer",
    "from anystreamer import stream_text",
    "from transformers import TextIteratorStreamer",
)
TIMED = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"


def imports(rounds: int) -> Table:
    took: dict[str, list[float]] = {program: [] for program in IMPORTS}
    for round_ in range(rounds + 1):
        for program in random.sample(IMPORTS, len(IMPORTS)):
            output = subprocess.run(
                [sys.executable, "-c", TIMED.format(program)], check=True, stdout=subprocess.PIPE
            ).stdout
            if round_:  # the first one reads the files
                took[program].append(1e3 * float(output))
    base = took[IMPORTS[0]]
    return {
        program: {
            "ms": quartiles(values),
            "ratio": quartiles([one / other for one, other in zip(values, base, strict=True)]),
        }
        for program, values in took.items()
    }


class Growth:
    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        return self._process.memory_info().rss, self._process.num_threads()

    def of_each(self) -> dict[str, float]:
        memory, threads = (
            now - before for now, before in zip(self._now(), self._before, strict=True)
        )
        return {"kib": memory / STREAMS / 1024, "threads": threads / STREAMS}


async def grown(open_one: Callable[[], Any], let_go: Callable[[], None]) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        for _ in range(WARM):
            await stack.enter_async_context(open_one())
        await anyio.wait_all_tasks_blocked()
        growth = Growth()
        for _ in range(STREAMS):
            await stack.enter_async_context(open_one())
        await anyio.wait_all_tasks_blocked()
        stack.callback(let_go)  # before the streams are left, which wait for their threads
        return growth.of_each()


async def stream_text() -> dict[str, float]:
    from anystreamer import stream_text
    from anystreamer.testing import Gate, ScriptedModel

    gate = Gate()
    model = ScriptedModel([gate])
    return await grown(lambda: stream_text(model, model.tokenizer, "a prompt"), gate.open)


async def engine() -> dict[str, float]:
    from anystreamer import open_engine
    from anystreamer.testing import Gate, ScriptedModel

    gate = Gate()
    model = ScriptedModel([gate])
    async with open_engine(model, model.tokenizer) as opened:
        return await grown(lambda: opened.stream_text("a prompt"), gate.open)


async def bridge() -> dict[str, float]:
    from anystreamer import stream_from_thread

    end = threading.Event()

    def produce(emit: Any, should_stop: Any) -> None:
        end.wait()

    return await grown(lambda: stream_from_thread(produce), end.set)


async def theirs() -> dict[str, float]:
    """As transformers' documentation has it: a thread for each, and a streamer to iterate."""
    from transformers import AsyncTextIteratorStreamer

    from anystreamer.demo import load_demo

    _, tokenizer = load_demo()
    end = threading.Event()

    def generate(streamer: object) -> None:
        end.wait()

    def open_one() -> None:
        streamer = AsyncTextIteratorStreamer(tokenizer)
        threading.Thread(target=generate, args=(streamer,)).start()

    try:
        for _ in range(WARM):
            open_one()
        growth = Growth()
        for _ in range(STREAMS):
            open_one()
        return growth.of_each()
    finally:
        end.set()


WAITING: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "stream_text": (stream_text, tuple(LOOPS)),
    "an engine's": (engine, tuple(LOOPS)),
    "stream_from_thread": (bridge, tuple(LOOPS)),
    "a thread with transformers' streamer": (theirs, ("asyncio",)),
}


def memory(rounds: int) -> Table:
    result: Table = {}
    for name, (_, loops) in WAITING.items():
        for loop in loops:
            command = [sys.executable, __file__, "--waiting", name, loop]
            each = [
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                for _ in range(rounds)
            ]
            result[f"{name} on {loop}"] = {
                "kib": quartiles([one["kib"] for one in each]),
                "threads": each[0]["threads"],
            }
    return result


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--waiting", nargs=2, help=SUPPRESS)
    options = parser.parse_args()
    if options.waiting:
        name, loop = options.waiting
        backend, kwargs = LOOPS[loop]
        figures = anyio.run(WAITING[name][0], backend=backend, backend_options=kwargs)
        print(json.dumps(figures))
        return
    results: Table = {"environment": environment(options)}
    results["import"] = imports(5 if options.quick else 25)
    results["memory"] = memory(1 if options.quick else 5)
    write(results, options.out)
    show("footprint", results)


if __name__ == "__main__":
    main()
