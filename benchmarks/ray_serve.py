"""Two replicas under Ray Serve, and one process, with many clients and with one that disconnects.

The same requests go to ``anystreamer serve`` and to two replicas on one node of Ray, each one by
one and with continuous batching, on the embedded model, greedily. The server and each replica have
one torch thread. The clients and Ray's own processes share their cores. `clients.py` has the
clients and the definitions. Ray starts after the servers have ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A proxy that is not ready after 5 seconds would be killed.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

import ray
from ray import serve

from anystreamer.ray import Settings, application

from . import clients
from .edge import SERVERS, saved_model, started
from .method import Parts, Table, new_process, summary

CLIENTS = (1, 8, 32)
PORT = 8711


class CountingSettings(Settings):
    """Each replica unpickles its settings. From then on it counts the model's steps."""

    steps: str

    def __setstate__(self, state: Table) -> None:
        super().__setstate__(state)
        clients.count_steps(self.steps)


@contextlib.contextmanager
def one_process(batching: str, model: Path, folder: Path) -> Iterator[clients.Address]:
    name = f"anystreamer, {batching}"
    with started(name, SERVERS[name], model, folder) as server:
        yield server.address


@contextlib.contextmanager
def two_replicas(batching: Any, model: Path, folder: Path) -> Iterator[clients.Address]:
    steps = clients.new_steps(folder / "replicas.steps")
    settings = CountingSettings(model=str(model), batching=batching, steps=str(steps))
    serve.run(application(settings, num_replicas=2, ray_actor_options={"num_cpus": 1}))
    try:
        yield clients.Address(PORT, steps)
    finally:
        serve.delete("default")


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # Ray's ports need a token. By default, Ray would leave one in the home folder.
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


def measured(process: Executor, server: clients.Address, rounds: int, times: int) -> Table:
    def load(number: int) -> Table:
        return clients.figures_of(process.submit(clients.load, server, number).result())

    for number in (1, 8):  # warms up
        load(number)
    speed = {str(number): summary([load(number) for _ in range(rounds)]) for number in CLIENTS}
    left = [process.submit(clients.leave, server, True).result() for _ in range(times)]
    return {"load": speed, "leaving": summary(left)}


def measure(is_quick: bool) -> Parts:
    rounds, times = (2, 3) if is_quick else (3, 20)
    with (
        saved_model() as (model, folder),
        new_process() as process,
        contextlib.ExitStack() as stack,
    ):
        for name, way in (("one process", one_process), ("two replicas", two_replicas)):
            if way is two_replicas:
                stack.enter_context(local_ray())
            for batching in ("none", "continuous"):
                with way(batching, model, folder) as server:
                    yield "load", f"{name}, {batching}", measured(process, server, rounds, times)
