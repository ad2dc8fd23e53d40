"""The serve command: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import gc
import ipaddress
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib.util import find_spec
from typing import Any

import anyio

from .. import open_engine
from .._errors import logger
from .._loading import placement, shown_name
from .common import INSTALL_SERVER, Backend, Batching, Server, load_or_fail, require_installed
from .connection_limits import ConnectionLimits
from .listening import Certificate, host_in_url, listening, listening_on_path, url_of
from .terminal import exit_now, fail, handling

__all__ = ["allowed_hosts", "is_loopback", "run_serve"]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, more: list[str]) -> list[str] | None:
    """The host names that requests to a server on *host* can use; None allows all."""
    if not (more or is_loopback(host)):
        return None
    return ["localhost", "127.0.0.1", "[::1]", host_in_url(host), *more]


def run_serve(
    name: str | None,
    *,
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

    Args:
        name: a folder or an id on the hub; None loads the embedded model.
        host, port: where to listen, if *uds* is None.
        uds: the path of a Unix domain socket.
        certificate: to serve HTTPS.
        backend, server: the event loop and the HTTP server.
        batching, max_running, max_waiting: arguments of `open_engine`.
        drain: seconds for which the server still accepts requests after a signal.
        grace: seconds that open streams have after that.
        loading: arguments of `load_model`.
        connections: the limits of connections.
        served_names: the model's name in responses, and its aliases. Empty: its own name.
        limits: further arguments of `create_app`.
    """
    try:
        from ..server import create_app
        from .run_server import ending_signals, run
    except ImportError as exc:
        fail(f"{exc.__cause__ or exc}: {INSTALL_SERVER}")
    for package in (server, backend):
        require_installed(package, INSTALL_SERVER)
    if few := connections.too_few_files():
        logger.warning("%s", few)
    # Before the model is loaded, which takes long: a wrong certificate, or a port in use, is
    # reported at once.
    if certificate:
        certificate.check()
    with ExitStack() as stack:
        listener = stack.enter_context(listening_on_path(uds) if uds else listening(host, port))
        stack.enter_context(_ended_by(ending_signals(), stack.close))
        model, tokenizer = load_or_fail(name, **loading)
        shown, *aliases = served_names or [shown_name(name)]

        def print_address() -> None:
            url = url_of(listener, "https" if certificate else "http")
            _print_line(f"Serving {shown} on {url}")
            if sys.stdout and sys.stdout.isatty():  # programs read only the line above
                page = "" if uds else f"Chat page: {url}/. "  # browsers cannot open a socket's path
                _print_line(f"Model: {placement(model)}. {page}API: {url}/v1. Ctrl-C stops.")

        def clean_up_and_exit() -> None:
            stack.close()  # removes the path of a socket
            exit_now()

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
                ready=print_address,
                at_once=clean_up_and_exit,
            )

        # A model and torch are 400,000 objects that stay. A collection that visits them takes
        # 0.2 s, in which nothing is sent. After freeze(), collections leave them out.
        gc.collect()
        gc.freeze()
        uses_uvloop = backend is Backend.ASYNCIO and find_spec("uvloop") is not None
        anyio.run(
            main,
            backend=backend.value,
            backend_options={"use_uvloop": True} if uses_uvloop else {},
        )


def _ended_by(
    signals: Sequence[signal.Signals], clean_up: Callable[[], object]
) -> AbstractContextManager[None]:
    """Let these signals end the process at once, after *clean_up*, until the server handles them.

    The first process of a container ignores signals without a handler: it would not stop before
    its model has been loaded.
    """

    def end(number: int, _: object) -> None:
        clean_up()
        if number == signal.SIGINT:
            exit_now()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # so that a supervisor sees why it has ended
        os._exit(128 + number)  # the first process of a container ignores the kill() above

    return handling(signals, end)


def _print_line(line: str) -> None:
    """Print a line. A server goes on if standard output cannot be written."""
    try:
        print(line, flush=True)
    except OSError:  # a pipe whose reader has gone, or a disk that is full
        # At exit, Python flushes the rest of the line, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
