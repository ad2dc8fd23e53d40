"""An engine behind HTTP, with many clients and with one that disconnects, and transformers serve.

The same requests go to ``anystreamer serve`` and to ``transformers serve``, each one by one and
with continuous batching, on the embedded model, greedily. Each server has one torch thread, and is
stopped (SIGSTOP) while another one is measured. `clients.py` has the clients and the definitions.
All servers must give the same answers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import clients
from .method import SPAWN, Table, new_process, percentiles, quartiles, ratio, take_turns

OURS, OURS_BATCHED, PEER = "anystreamer, none", "anystreamer, continuous", "transformers, default"
# Options of each server. With its defaults, continuous batching of transformers serve reserves
# gigabytes on a CPU, and takes a tenth of a second for each token.
SERVERS = {
    OURS: ("--batching", "none"),
    OURS_BATCHED: ("--batching", "continuous"),
    PEER: (),
    "transformers, continuous": (
        *("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "256"),
    ),
}

# The servers whose answers on a kept-alive connection are timed.
KEPT_ALIVE = {
    "anystreamer, uvicorn": ("--server", "uvicorn"),
    "anystreamer, hypercorn": ("--server", "hypercorn"),
    "anystreamer, hypercorn on trio": ("--backend", "trio"),
    PEER: (),
}


def serve(program: str, steps: Path, log: Path, arguments: list[str]) -> None:
    """Become that program, and write down the model's steps."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    clients.count_steps(steps)
    sys.argv = [program, "serve", *arguments]
    if program == "anystreamer":
        from anystreamer.cli import main
    else:
        from transformers.cli.transformers import main
    main()


@dataclass
class Server:
    """A running server, and the file in which it counts the model's steps."""

    port: int
    steps: Path
    log: Path
    process: Any

    def wait(self) -> None:
        """Wait until it takes requests."""
        open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        deadline = time.monotonic() + 300
        while True:
            try:
                return open_url(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
            except OSError:
                if self.process.exitcode is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no server:\n{self.log.read_text()}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        os.kill(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()


@contextlib.contextmanager
def started(name: str, options: tuple[str, ...], model: Path, folder: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    steps, log = clients.new_steps(folder / f"{port}.steps"), folder / f"{port}.log"
    arguments = [str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    os.environ["OMP_NUM_THREADS"] = "1"  # it is inherited
    process = SPAWN.Process(target=serve, args=(name.split(",")[0], steps, log, arguments))
    process.start()
    try:
        yield Server(port, steps, log, process)
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def saved_model() -> Iterator[tuple[Path, Path]]:
    """The embedded model in a folder, and an empty folder beside it."""
    from anystreamer.demo import load_demo

    with tempfile.TemporaryDirectory() as folder:
        for part in load_demo():
            part.save_pretrained(Path(folder) / "model")
        yield Path(folder) / "model", Path(folder)


def awake(server: Server, process: Executor, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of `clients`, in their process, while the server is not stopped."""
    with server.awake():
        return process.submit(function, server.port, *args).result()


def load(servers: dict[str, Server], process: Executor, number: int, rounds: int) -> Table:
    ways = {
        name: partial(awake, each, process, clients.load, number) for name, each in servers.items()
    }
    turns = take_turns(ways, rounds)
    texts = {
        tuple(answer.text for answers in round_ for answer in answers)
        for every in turns.values()
        for round_ in every
    }
    assert len(texts) == 1, "the servers gave different answers"
    figures = {name: [clients.figures_of(each) for each in every] for name, every in turns.items()}

    def of(name: str, figure: str) -> list[float]:
        return [each[figure] for each in figures[name]]

    speed, last = "tokens_per_second", "ttft_of_the_last_ms"
    return {
        name: clients.latencies(every)
        | {figure: quartiles(of(name, figure)) for figure in figures[name][0]}
        | {
            "tokens_per_second_to_transformers": ratio(of(name, speed), of(PEER, speed)),
            # The other way round: more is better.
            "ttft_of_the_last_to_transformers": ratio(of(PEER, last), of(name, last)),
        }
        for name, every in turns.items()
    }


def leaving(servers: dict[str, Server], process: Executor, times: int) -> Table:
    table: Table = {name: {} for name in servers}
    for kind, is_streamed in (("streamed", True), ("whole", False)):
        turns = take_turns(
            {
                name: partial(awake, each, process, clients.leave, each.steps, is_streamed)
                for name, each in servers.items()
            },
            times,
        )
        for name, every in turns.items():
            table[name][kind] = {"times": times} | {
                figure: percentiles([each[figure] for each in every], 100)
                for figure in ("ms", "steps")
            }
    return table


@contextlib.contextmanager
def all_started(
    options: dict[str, tuple[str, ...]], model: Path, folder: Path
) -> Iterator[dict[str, Server]]:
    """Those servers, stopped."""
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(started(name, each, model, folder))
            for name, each in options.items()
        }
        for server in servers.values():
            server.wait()
        for server in servers.values():
            server.stop()
        yield servers


def kept_alive(servers: dict[str, Server], process: Executor, rounds: int, times: int) -> Table:
    turns = take_turns(
        {
            name: partial(awake, each, process, clients.kept_alive, times)
            for name, each in servers.items()
        },
        rounds,
    )
    return {
        name: {
            "times": rounds * times,
            "ms": percentiles([ms for each in every for ms in each], 99),
        }
        for name, every in turns.items()
    }


def measure(is_quick: bool) -> Iterator[Table]:
    yield {"requests": {"new_tokens": clients.TOKENS, "of_each_client": clients.REQUESTS}}
    with contextlib.ExitStack() as stack:
        model, folder = stack.enter_context(saved_model())
        process = stack.enter_context(new_process())
        with all_started(KEPT_ALIVE, model, folder) as servers:
            kept_alive(servers, process, 1, 20)  # warms up
            rounds, times = (1, 50) if is_quick else (6, 200)
            yield {"kept_alive": kept_alive(servers, process, rounds, times)}
        servers = stack.enter_context(all_started(SERVERS, model, folder))
        for server in servers.values():
            for number in (1, 4):  # warms up
                awake(server, process, clients.load, number)
        results: Table = {}
        for number in clients.REQUESTS:
            results[str(number)] = load(servers, process, number, 2 if is_quick else 6)
            yield {"load": results}
        yield {"leaving": leaving(servers, process, 3 if is_quick else 10)}
