"""What two replicas under Ray Serve make of many clients, and one process; and of one who leaves.

    python benchmarks/ray_serve.py [--quick] [--out benchmarks/results/ray_serve.json]

The same requests go to `anystreamer serve` and to two replicas on one node of Ray, each one by one
and with continuous batching, on the embedded model, greedily. The server and each replica have one
of torch's threads; the clients, and Ray's own processes, take their part of the same cores. Clients
and definitions are those of benchmarks/edge.py. What is measured is alone: Ray is started when the
server has ended.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from common import Table, environment, options_of, percentile, quartiles, write
from edge import OURS, OURS_BATCHED, REQUESTS, STEPS, TOKENS, Clients, Server, figures
from ray import serve
from tables import show

from anystreamer.ray import Settings, application

CLIENTS = (1, 8, 32)
PORT = 8711


class Counting(Settings):
    """Settings are unpickled in each replica: that is where the model's steps can be counted."""

    steps: str

    def __setstate__(self, state: Table) -> None:
        super().__setstate__(state)
        count_steps(self.steps)


def count_steps(path: str) -> None:
    """Write down the model's steps, as the server of edge.py does. One client asks one replica."""
    from transformers import LlamaForCausalLM

    with Path(path).open("r+b") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 8 * STEPS)).cast("d")
    forward = LlamaForCausalLM.forward

    def counted(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        memory[1] = time.monotonic()
        memory[0] += 1
        return output

    LlamaForCausalLM.forward = counted


@contextlib.contextmanager
def one_process(batching: str, model: Path, folder: Path) -> Iterator[tuple[int, Path]]:
    server = Server(OURS if batching == "none" else OURS_BATCHED, model, folder)
    try:
        server.wait()
        yield server.port, server.steps
    finally:
        server.end()


@contextlib.contextmanager
def two_replicas(batching: str, model: Path, folder: Path) -> Iterator[tuple[int, Path]]:
    steps = folder / "replicas.steps"
    steps.write_bytes(bytes(8 * STEPS))
    settings = Counting(model=str(model), batching=batching, steps=str(steps))
    serve.run(application(settings, num_replicas=2, ray_actor_options={"num_cpus": 1}))
    try:
        yield PORT, steps
    finally:
        serve.delete("default")


@contextlib.contextmanager
def ray_here() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # Ray's ports ask for it. By default it would be put into the home folder, and stay.
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        ray.init(
            num_cpus=2,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


def measured(port: int, steps: Path, clients: Clients, rounds: int, times: int) -> Table:
    def leaving() -> Table:
        return clients.do(port=port, steps=str(steps), stream=True)

    for number in (1, 8):  # warm up
        clients.do(port=port, clients=number)
    result: Table = {"load": {}}
    for number in CLIENTS:
        runs = [figures(clients.do(port=port, clients=number)) for _ in range(rounds)]
        ttft = [1e3 * each for run in runs for each in run["ttft"]]
        result["load"][str(number)] = {
            "tokens_per_second": quartiles([run["tokens_per_second"] for run in runs]),
            "ttft_ms": {"median": percentile(ttft, 0.5), "p95": percentile(ttft, 0.95)},
        }
    found = [leaving() for _ in range(times)]
    ms = [1e3 * each["seconds"] for each in found]
    result["leaving"] = {
        "ms": quartiles(ms) | {"max": max(ms)},
        "steps_after": max(each["steps"] for each in found),
    }
    return result


def main() -> None:
    options = options_of(__doc__).parse_args()
    from anystreamer.demo import load_demo

    results: Table = {
        "environment": environment(options),
        "requests": {"new_tokens": TOKENS, "of_each_client": REQUESTS},
    }
    results["environment"]["torch_threads"] = 1  # of the server, and of each replica
    rounds, times = (2, 3) if options.quick else (3, 20)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in load_demo():
            part.save_pretrained(folder / "model")
        clients = Clients()
        stack.callback(clients.end)
        for name, way in (("one process", one_process), ("two replicas", two_replicas)):
            if way is two_replicas:
                stack.enter_context(ray_here())
            for batching in ("none", "continuous"):
                with way(batching, folder / "model", folder) as (port, steps):
                    result = measured(port, steps, clients, rounds, times)
                results[f"{name}, {batching}"] = result
                write(results, options.out)
    show("ray_serve", results)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
