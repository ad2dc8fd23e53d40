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
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import clients
from .method import SPAWN, Parts, Table, compared, new_process, ratio, summary, take_turns

PEER = "transformers, default"
# Options of each server. With its defaults, continuous batching of transformers serve reserves
# gigabytes on a CPU, and takes a tenth of a second for each token.
SERVERS = {
    "anystreamer, none": ("--batching", "none"),
    "anystreamer, continuous": ("--batching", "continuous"),
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
    """A running server."""

    address: clients.Address
    pid: int

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def awake(self, process: Executor, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of `clients`, in their process, while the server is not stopped."""
        os.kill(self.pid, signal.SIGCONT)
        try:
            return process.submit(function, self.address, *args).result()
        finally:
            self.stop()


def wait_for(port: int, process: Any, log: Path) -> None:
    """Wait until a server takes requests."""
    deadline = time.monotonic() + 300
    while True:
        try:
            with clients.connected(port, timeout=5) as client:
                clients.whole_answer(client, "/health")
                return
        except OSError:
            if process.exitcode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no server:\n{log.read_text()}") from None
            time.sleep(0.05)


@contextlib.contextmanager
def started(name: str, options: tuple[str, ...], model: Path, folder: Path) -> Iterator[Server]:
    """That server, when it takes requests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    steps, log = clients.new_steps(folder / f"{port}.steps"), folder / f"{port}.log"
    arguments = [str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    os.environ["OMP_NUM_THREADS"] = "1"  # it is inherited
    process = SPAWN.Process(target=serve, args=(name.split(",")[0], steps, log, arguments))
    process.start()
    try:
        wait_for(port, process, log)
        yield Server(clients.Address(port, steps), process.pid or 0)
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


@contextlib.contextmanager
def all_started(
    options: dict[str, tuple[str, ...]], model: Path, folder: Path
) -> Iterator[dict[str, Server]]:
    """Those servers, stopped."""
    servers: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:
        for name, each in options.items():
            servers[name] = stack.enter_context(started(name, each, model, folder))
            servers[name].stop()
        yield servers


@dataclass
class Bench:
    """Servers that take turns, and the process of their clients."""

    servers: dict[str, Server]
    process: Executor

    def turns(self, rounds: int, function: Callable[..., Any], *args: Any) -> dict[str, list[Any]]:
        ways = {
            name: partial(server.awake, self.process, function, *args)
            for name, server in self.servers.items()
        }
        return take_turns(ways, rounds)

    def load(self, number: int, rounds: int) -> Table:
        turns = self.turns(rounds, clients.load, number)
        texts = {
            tuple(answer.text for answers in round_ for answer in answers)
            for every in turns.values()
            for round_ in every
        }
        assert len(texts) == 1, "the servers gave different answers"
        figures = {name: [clients.figures_of(one) for one in each] for name, each in turns.items()}
        table = compared(figures, "tokens_per_second", transformers=PEER)
        last = {
            name: [one["ttft_of_the_last_ms"] for one in each] for name, each in figures.items()
        }
        for name, row in table.items():
            row["speed_of_the_last_to_transformers"] = ratio(last[PEER], last[name])
        return table

    def kept_alive(self, rounds: int, times: int) -> Table:
        turns = self.turns(rounds, clients.kept_alive, times)
        return {name: {"times": rounds * times} | summary(each) for name, each in turns.items()}


def measure(is_quick: bool) -> Parts:
    with contextlib.ExitStack() as stack:
        model, folder = stack.enter_context(saved_model())
        process = stack.enter_context(new_process())
        with all_started(KEPT_ALIVE, model, folder) as servers:
            bench = Bench(servers, process)
            bench.kept_alive(1, 20)  # warms up
            yield "kept_alive", bench.kept_alive(*((1, 50) if is_quick else (6, 200)))
        bench = Bench(stack.enter_context(all_started(SERVERS, model, folder)), process)
        for number in (1, 4):  # warms up
            bench.turns(1, clients.load, number)
        for number in clients.REQUESTS:
            yield "load", str(number), bench.load(number, 2 if is_quick else 6)
        for kind in ("streamed", "whole"):
            left = bench.turns(3 if is_quick else 10, clients.leave, kind == "streamed")
            for name, row in compared(left).items():
                yield "leaving", name, kind, row
