"""The serve command: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import gc
import ipaddress
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import anyio

from .. import open_engine
from .._loading import placement, shown_name
from .common import INSTALL_SERVER, Backend, Batching, Server, load_or_fail, require_installed
from .connection_limits import ConnectionLimits
from .listening import Certificate, listening, listening_on_path, url_of
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
    uds: str | None,
    certificate: Certificate | None,
    backend: Backend,
    server: Server,
    batching: Batching,
    max_running: int | None,
    max_waiting: int,
    drain: float,
    grace: float,
    loading: dict[str, Any],
    connections: ConnectionLimits,
    served_names: Sequence[str],
    **limits: Any,
) -> None:
    """Load a model and serve it until a signal.

    *loading* are arguments of `load_model`, and *limits* of `create_app`. *served_names* are the
    model's name in responses, and its aliases; by default its own.
    """
    try:
        from ..server import create_app
        from .run_server import run
    except ImportError as exc:
        fail(f"{exc.__cause__ or exc}: {INSTALL_SERVER}")
    for package in (server, backend):
        require_installed(package, INSTALL_SERVER)
    # First, because loading takes long: a port that is in use is found out before.
    with listening_on_path(uds) if uds else listening(host, port) as listener:
        model, tokenizer = load_or_fail(name, **loading)
        shown, *aliases = served_names or [shown_name(name)]

        def tell() -> None:
            url = url_of(listener, "https" if certificate else "http")
            print(f"Serving {shown} on {url}", flush=True)
            if sys.stdout.isatty():  # programs read the line above, and nothing else
                page = "" if uds else f"Chat page: {url}/. "  # browsers open no paths
                print(f"Model: {placement(model)}. {page}API: {url}/v1. Ctrl-C stops.")

        try:
            engine_context = open_engine(
                model,
                tokenizer,
                batching=batching.value,
                max_running=max_running,
                max_waiting=max_waiting,
            )
        except ValueError as exc:
            fail(str(exc))

        async def main() -> None:
            await run(
                engine_context,
                lambda engine: create_app(
                    engine,
                    model_name=shown,
                    aliases=aliases if served_names else None,
                    send_timeout=connections.send_timeout,
                    **limits,
                ),
                listener,
                server.value,
                backend.value,
                connections,
                drain=drain,
                grace=grace,
                certificate=certificate,
                ready=tell,
                at_once=exit_now,
            )

        # A model and torch are 400,000 objects that stay. Looking through them takes 0.2 s, in
        # which nothing is sent: later collections leave them out.
        gc.collect()
        gc.freeze()
        uses_uvloop = backend is Backend.ASYNCIO and find_spec("uvloop") is not None
        anyio.run(
            main,
            backend=backend.value,
            backend_options={"use_uvloop": True} if uses_uvloop else {},
        )
