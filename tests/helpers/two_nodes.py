"""Starting a Ray cluster of two nodes for tests, and ending each of its processes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import anyio
import httpx
import psutil
import pytest

from .scripted import CLUSTER_PATIENCE

__all__ = ["MOST_WAITING", "Cluster", "figures_of", "idle", "two_nodes"]

MOST_WAITING = 10


class Cluster:
    """The program of ray_cluster.py, in another process: Ray's threads and signals stay there."""

    def __init__(
        self, process: subprocess.Popen[str], url: str, log: IO[str], env: dict[str, str]
    ) -> None:
        self._process = process
        self.folder = env["RAY_TMPDIR"]  # with a short path
        self.env = env  # of programs that speak to it
        self._log = log
        self.url = url

    def do(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            pytest.fail(f"the cluster has failed:\n{self._log.read()}", pytrace=False)
        return json.loads(line)

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.url, trust_env=False, timeout=CLUSTER_PATIENCE, limits=limits
        )


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A cluster of two nodes that has a replica of the application on each of them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Not pytest's own folder: the paths of sockets would be too long.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        ray_environment(folder) as env,
        (Path(folder) / "log").open("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ray_cluster", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
        ) as process,
    ):
        try:
            found = Cluster(process, f"http://127.0.0.1:{port}", log, env)
            found.do("serve", max_waiting=MOST_WAITING)
            yield found
            found.do("end")
        finally:
            process.kill()


@contextmanager
def ray_environment(folder: str) -> Iterator[dict[str, str]]:
    """Variables for the programs of a cluster. At the end, all processes that have them are killed.

    Ray's ports are open to the network, for programs that have its token, so each cluster has its
    own token. It also has its own folder, where Ray otherwise keeps one address for all clusters of
    a machine.
    """
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = os.environ | {
        "ANYSTREAMER_CLUSTER": folder,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),  # replicas import parts of the tests
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "anystreamer.ray:error_objects",
        # A node that does not answer for this long (milliseconds) counts as dead. If a node has
        # ended, this is noticed at once.
        "RAY_health_check_timeout_ms": "120000",
        # A busy machine takes longer to start a proxy than Serve waits, which then kills it.
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    }
    try:
        yield env
    finally:
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("ANYSTREAMER_CLUSTER") == folder:
                    process.kill()
                    left.append(process)
            except psutil.Error:
                continue  # it has ended, or belongs to another user
        psutil.wait_procs(left, timeout=CLUSTER_PATIENCE)


async def figures_of(client: httpx.AsyncClient, replica: str) -> dict[str, float]:
    """The metrics of a replica."""
    with anyio.fail_after(CLUSTER_PATIENCE):
        while True:  # until this replica answers
            async with anyio.create_task_group() as tasks:
                found: list[httpx.Response] = []

                async def ask(found: list[httpx.Response] = found) -> None:
                    found.append(await client.get("/metrics"))

                for _ in range(4):
                    tasks.start_soon(ask)
            for response in found:
                # A refusal of Serve's own has no such header: its queue still counts clients that
                # have left.
                if response.headers.get("x-replica") == replica:
                    lines = [line.rsplit(" ", 1) for line in response.text.splitlines()]
                    return {name: float(value) for name, value in lines if name[0] != "#"}


async def idle(client: httpx.AsyncClient, replica: str) -> dict[str, float]:
    """The metrics of a replica, once it has no requests."""
    with anyio.fail_after(CLUSTER_PATIENCE):
        while True:
            found = await figures_of(client, replica)
            if not found["anystreamer_requests_running"] + found["anystreamer_requests_waiting"]:
                return found
