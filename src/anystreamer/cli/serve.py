"""The serve command: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

import anyio

from .. import open_engine
from .._load_model import placement, shown_name
from .common import INSTALL_SERVER, Backend, Batching, Server, load_or_fail, require_installed
from .connection_limits import ConnectionLimits
from .terminal import exit_now, fail

__all__ = ["allowed_hosts", "is_loopback", "run_serve"]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, more: list[str]) -> list[str] | None:
    """The host names that requests to a server on *host* can use; None allows all."""
    if not (more or is_loopback(host)):
        return None
    own = f"[{host}]" if ":" in host else host
    return ["localhost", "127.0.0.1", "[::1]", own, *more]


def run_serve(
    name: str | None,
    host: str,
    port: int,
    backend: Backend,
    server: Server,
    batching: Batching,
    max_waiting: int,
    grace: float,
    loading: dict[str, Any],
    connections: ConnectionLimits,
    **limits: Any,
) -> None:
    """Load a model and serve it until a signal.

    *loading* are arguments of `load_model`, and *limits* of `create_app`.
    """
    try:
        from ..server import create_app
        from .run_server import listening, run, url_of
    except ImportError as exc:
        fail(f"{exc.__cause__ or exc}: {INSTALL_SERVER}")
    for package in (server, backend):
        require_installed(package, INSTALL_SERVER)
    # First, because loading takes long: a port that is in use is found out before.
    with listening(host, port) as listener:
        model, tokenizer = load_or_fail(name, **loading)
        shown = shown_name(name)

        def tell() -> None:
            url = url_of(listener)
            print(f"Serving {shown} on {url}", flush=True)
            if sys.stdout.isatty():  # programs read the line above, and nothing else
                print(f"Model: {placement(model)}. Chat page: {url}/. API: {url}/v1. Ctrl-C stops.")

        async def main() -> None:
            await run(
                open_engine(
                    model,
                    tokenizer,
                    batching=batching.value,
                    max_waiting=max_waiting,
                ),
                lambda engine: create_app(
                    engine, model_name=shown, send_timeout=connections.send_timeout, **limits
                ),
                listener,
                server.value,
                backend.value,
                connections,
                grace=grace,
                ready=tell,
                at_once=exit_now,
            )

        anyio.run(main, backend=backend.value)
