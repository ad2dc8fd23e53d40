"""The method of all programs: rounds in which each way has a turn, figures, loops, processes."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import random
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import anyio

from . import report

Key = TypeVar("Key")
Result = TypeVar("Result")
Table: TypeAlias = dict[str, Any]  # a part of the results, as it is in the JSON
Parts: TypeAlias = Iterator[tuple[Any, ...]]  # each after the names that lead to it

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
ALL_LOOPS = tuple(LOOPS)
ON_ASYNCIO = ("asyncio", "uvloop")

PACKAGES = (
    *("anystreamer", "anyio", "trio", "uvloop", "torch", "transformers", "tokenizers"),
    *("starlette", "uvicorn", "fastapi", "pydantic", "openai", "ray", "culsans", "janus"),
    *("llguidance", "xgrammar", "outlines"),
)

MILLISECOND = 0.001  # seconds; uvloop cannot wait for a shorter time
SPAWN = multiprocessing.get_context("spawn")


# -- rounds and their figures


def take_turns(
    ways: Mapping[Key, Callable[[], Result]], rounds: int, *, warm_up: int = 0
) -> dict[Key, list[Result]]:
    """Call each way once in each round, in an order that changes: the results by way and round."""
    results: dict[Key, list[Result]] = {name: [] for name in ways}
    for round_ in range(-warm_up, rounds):
        for name in random.sample(list(ways), len(ways)):
            result = ways[name]()
            if round_ >= 0:
                results[name].append(result)
    return results


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles, of a single value too."""
    first, median, third = statistics.quantiles(
        values if len(values) > 1 else [*values, *values], n=4, method="inclusive"
    )
    return {"median": median, "q1": first, "q3": third}


def ratio(values: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """The quartiles of the ratios to a peer in the same rounds, for as many rounds as both have."""
    return quartiles([one / other for one, other in zip(values, peer, strict=False)])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, two percentiles and the maximum. Nothing of no values."""
    ordered = sorted(values)
    shares = {"median": 50, "p95": 95, "p99": 99, "max": 100}
    last = len(ordered) - 1
    return {
        name: ordered[min(last, len(ordered) * n // 100)] for name, n in shares.items() if ordered
    }


def summary(runs: Sequence[Any]) -> Table:
    """The figures of several runs: quartiles, or of lists the percentiles of all their values."""
    match runs[0]:
        case dict():
            return {name: summary([run[name] for run in runs]) for name in runs[0]}
        case list():
            return percentiles([each for values in runs for each in values])
        case _:
            return quartiles(runs)


def compare(
    ways: Mapping[str, Callable[[], Table]],
    rounds: int,
    figure: str = "",
    *,
    warm_up: int = 0,
    **peers: str,
) -> Table:
    """Let the ways take turns: what `compared` returns."""
    return compared(take_turns(ways, rounds, warm_up=warm_up), figure, **peers)


def compared(runs: Mapping[str, Sequence[Table]], figure: str = "", **peers: str) -> Table:
    """The figures of each way, with the ratios of one of them to peers in the same rounds, if any.

    A ratio is named ``ratio_to_`` and its peer, or ``speed_to_``: of a speed, more is better. It
    has the ratio of the best rounds too, which other work on the machine disturbs least.
    """
    is_speed = figure.endswith("_per_second")
    word, best = ("speed", max) if is_speed else ("ratio", min)
    table: Table = {name: {"rounds": len(some)} | summary(some) for name, some in runs.items()}
    for name, (peer, way) in product(runs, peers.items()):
        if way in runs:
            own, other = ([run[figure] for run in runs[each]] for each in (name, way))
            best_ratio = {"best": best(own) / best(other)}
            table[name][f"{word}_to_{peer}"] = ratio(own, other) | best_ratio
    return table


def environment(is_quick: bool) -> Table:
    """When, where and with what it was measured."""
    torch = sys.modules.get("torch")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "is_quick": is_quick,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch_threads": torch.get_num_threads() if torch else None,
        "versions": {each.name: each.version for each in distributions() if each.name in PACKAGES},
    }


def record(program: str, is_quick: bool, path: Path) -> None:
    """Run one program. Its results are written after each part, because a run takes long.

    A program yields each part after the names that lead to it: ``"load", "8", figures``.
    """
    module = importlib.import_module(f"{__package__}.{program}")
    path.parent.mkdir(parents=True, exist_ok=True)
    results: Table = {"environment": environment(is_quick)}
    for *names, last, part in module.measure(is_quick):
        into = results
        for name in names:
            into = into.setdefault(name, {})
        into[last] = part
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, table in report.tables(program, results).items():
        print(f"\n{program}: {name}\n\n{table}", end="", flush=True)


# -- loops and processes


def run_on(loop: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a coroutine function on one of `LOOPS`."""
    backend, options = LOOPS[loop]
    return anyio.run(function, *args, backend=backend, backend_options=options)


def on_loops(
    ways: Mapping[str, tuple[Any, Sequence[str]]], call: Callable[[str, Any], Result]
) -> dict[str, Callable[[], Result]]:
    """Each way, on each of its loops: calls of a function that takes a loop and a way."""
    return {
        f"{name} on {loop}": partial(call, loop, way)
        for name, (way, loops) in ways.items()
        for loop in loops
    }


async def note_lateness(late: list[float]) -> None:
    """Sleep for a millisecond, again and again, and note by how many the loop is late."""
    while True:
        due = time.perf_counter() + MILLISECOND
        await anyio.sleep(MILLISECOND)
        late.append(1e3 * (time.perf_counter() - due))


async def busy_half_the_time() -> None:
    """Other work on the loop, which holds the GIL."""
    while True:
        until = time.perf_counter() + MILLISECOND
        while time.perf_counter() < until:
            pass
        await anyio.sleep(MILLISECOND)


def new_process() -> ProcessPoolExecutor:
    """A new interpreter. It runs the functions of modules that are submitted, one by one."""
    return ProcessPoolExecutor(1, SPAWN)


def in_new_process(function: Callable[..., Result], *args: Any) -> Result:
    with new_process() as process:
        return process.submit(function, *args).result()


def run_anew(loop: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a coroutine function on one of `LOOPS`, in a new process."""
    return in_new_process(run_on, loop, function, *args)


@contextmanager
def served(
    new_engine: Callable[[], Any], loop: str = "asyncio", **options: Any
) -> Iterator[tuple[int, multiprocessing.process.BaseProcess]]:
    """A process that serves an engine with uvicorn: the port and the process.

    *options* are those of the application. Connections wait in the socket's backlog until the
    process accepts them.
    """
    from anystreamer.cli.listening import listening

    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        args = (loop, serve, listener, new_engine, options)
        process = SPAWN.Process(target=run_on, args=args, daemon=True)
        process.start()
    try:
        yield port, process
    finally:
        process.kill()
        process.join()


async def serve(listener: socket.socket, new_engine: Callable[[], Any], options: Table) -> None:
    import uvicorn

    from anystreamer.server import create_app

    async with new_engine() as engine:
        config = uvicorn.Config(create_app(engine, **options), log_config=None, lifespan="off")
        await uvicorn.Server(config).serve(sockets=[listener])
