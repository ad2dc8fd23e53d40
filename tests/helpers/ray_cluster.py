"""A program: a cluster of two nodes on this machine, with the application on it.

It reads commands from its standard input and answers each, both as lines of JSON. Ray's processes
are its children, and end with it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import httpx
import psutil
import ray
from ray import serve
from ray._private import services
from ray.cluster_utils import Cluster
from ray.serve.api import _run
from ray.serve.context import _get_global_client

from anystreamer.ray import Settings, _Replica, application

from .linked_model import LinkedModel
from .scripted import CLUSTER_PATIENCE

# Serve's other applications may have a replica beside ours; ours has one on each node.
NODE = {
    "num_cpus": 2,
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
}


class _Linked(_Replica):
    """A replica whose model is linked to the test's."""

    # Serve accepts a constructor that is async.
    async def __init__(self, settings: Settings, path: str) -> None:  # type: ignore[misc]
        model = LinkedModel(path, lambda: self._engine)
        patch("anystreamer.ray.load_model", lambda *_, **__: (model, model.tokenizer)).start()
        await super().__init__(settings)  # type: ignore[misc]


def get_node_patiently(*args: Any, get_node: Callable[..., Any] = services.get_node) -> Any:
    """Wait until a node has registered. Ray waits for 30 seconds; a busy machine takes longer."""
    deadline = time.monotonic() + CLUSTER_PATIENCE
    while True:
        try:
            return get_node(*args)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def replicas_of(application: str) -> list[dict[str, Any]]:
    """What Serve reports of each replica of an application."""
    applications = _get_global_client().get_serve_details()["applications"]
    replicas: list[dict[str, Any]]
    replicas = applications[application]["deployments"]["anystreamer"]["replicas"]
    return replicas


class TwoNodes:
    """Starts the cluster. Its public methods are the commands of the program."""

    def __init__(self, port: int) -> None:
        with patch("ray._private.services.get_node", get_node_patiently):
            self._cluster = Cluster(initialize_head=True, head_node_args=NODE)
            self._second = self._cluster.add_node(**NODE)
        ray.init(address=self._cluster.address, log_to_driver=False)
        http_options = {"host": "127.0.0.1", "port": port}
        with patch("ray.serve._private.api.HTTP_PROXY_TIMEOUT", CLUSTER_PATIENCE):
            serve.start(proxy_location="HeadOnly", http_options=http_options)

    def address(self) -> str:
        return str(self._cluster.address)

    def serve(self, **settings: Any) -> list[dict[str, Any]]:
        """Serve it, or a new version of it, on both nodes. Returns the replicas.

        One by one, unless *settings* say otherwise: a second request then needs the other node.
        """
        self._deploy(settings, blocking=True)
        return self.replicas(2)

    def redeploy(self) -> None:
        """Begin to replace both replicas."""
        self._deploy({"max_waiting": 10}, blocking=False)

    def _deploy(self, settings: dict[str, Any], *, blocking: bool) -> None:
        options = {
            "num_replicas": 2,
            "max_replicas_per_node": 1,
            "health_check_period_s": 1,
            "graceful_shutdown_wait_loop_s": 0.2,
            "graceful_shutdown_timeout_s": 60,
        }
        made = Settings(**{"batching": "none", "request_log": "json", **settings})
        if blocking:
            serve.run(application(made, **options))
        else:
            _run(application(made, **options), _blocking=False)

    def replicas(self, number: int) -> list[dict[str, Any]]:
        """Wait until there are this many, and all run. One that is being started is not listed."""
        deadline = time.monotonic() + CLUSTER_PATIENCE
        while True:
            keep = ("replica_id", "node_id", "pid", "state")
            found = [{name: each.get(name) for name in keep} for each in replicas_of("default")]
            alive = {each["pid"] for each in found if psutil.pid_exists(each["pid"] or -1)}
            runs = all(each["state"] == "RUNNING" for each in found)
            if runs and len(found) == number == len(alive):
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {number} replicas, but {found}")
            time.sleep(0.1)

    def in_state(self, state: str) -> dict[str, Any]:
        """Wait for a replica that is in this state and has a process."""
        deadline = time.monotonic() + CLUSTER_PATIENCE
        while time.monotonic() < deadline:
            for each in replicas_of("default"):
                if each["state"] == state and psutil.pid_exists(each.get("pid") or -1):
                    return {name: each[name] for name in ("replica_id", "pid")}
            time.sleep(0.02)
        raise TimeoutError(f"no replica is {state}")

    def metrics(self) -> str:
        """What the agents of all nodes export to Prometheus."""
        texts = []
        for node in ray.nodes():
            if node["Alive"]:
                address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with httpx.Client(trust_env=False, timeout=CLUSTER_PATIENCE) as client:
                    texts.append(client.get(address).text)
        return "\n".join(texts)

    def scale(self, seconds: float) -> None:
        """Serve from one to two replicas, as many as the load needs, beside the others.

        *seconds* is how long a load must last, or must have ended, until their number changes.
        """
        options = {
            "num_replicas": "auto",
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_ongoing_requests": 1,
                "upscale_delay_s": seconds,
                "downscale_delay_s": seconds,
                "metrics_interval_s": 0.5,
                "look_back_period_s": 2.0,
            },
        }
        settings = Settings.model_validate({"batching": "none", "max_waiting": 50})
        serve.run(application(settings, **options), name="scaling", route_prefix="/scaling")

    def running(self, name: str) -> int:
        """How many replicas of an application run."""
        return sum(each["state"] == "RUNNING" for each in replicas_of(name))

    def link(self, path: str) -> None:
        """Serve beside it, in one replica, whatever model is linked to it there."""
        # The head of a response comes with its first part. For a request that waits that is a
        # comment, by default after 15 seconds.
        settings = Settings.model_validate({"model_name": "anystreamer", "keep_alive": 0.2})
        # No request waits in Serve: the engine's own queue is what is tested.
        options = {"max_ongoing_requests": 1000, "max_queued_requests": 1000}
        deployment = serve.deployment(_Linked).options(**options).bind(settings, path)
        serve.run(deployment, name="linked", route_prefix="/linked")

    def delete(self, name: str) -> None:
        serve.delete(name)

    def second_node(self) -> str:
        return str(self._second.node_id)

    def kill_second_node(self) -> None:
        """Kill each of its processes, its replica among them."""
        infos = [info for each in self._second.all_processes.values() for info in each]
        parents = [psutil.Process(info.process.pid) for info in infos]
        for process in [each for parent in parents for each in parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # gone with its parent
                process.kill()
        self._cluster.remove_node(self._second, allow_graceful=False)

    def add_node(self) -> None:
        self._second = self._cluster.add_node(**NODE)

    def end(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # Ray has much to say
    cluster = TwoNodes(int(sys.argv[1]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answer = getattr(cluster, name)(**arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
