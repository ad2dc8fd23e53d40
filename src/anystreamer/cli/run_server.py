"""Runs an application on uvicorn or hypercorn until a signal, and then shuts it down."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from importlib import import_module
from typing import Any

from anyio import (
    CancelScope,
    Event,
    create_task_group,
    move_on_after,
    open_signal_receiver,
    sleep,
)

from .._engine import Engine
from .connection_limits import ConnectionLimits
from .listening import BACKLOG, Certificate
from .terminal import handling

__all__ = ["ending_signals", "run", "serve"]

# How long a server can take to send the last parts, once the engine is closed (seconds).
SHUTDOWN_SEND_TIMEOUT = 5.0

# How often to check for a signal where the event loop itself cannot handle them (seconds).
SIGNAL_POLL = 0.1


def ending_signals() -> list[signal.Signals]:
    """The signals that end a server. SIGHUP, the end of a terminal, does not under ``nohup``."""
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]


async def run(
    engine_context: AbstractAsyncContextManager[Engine],
    new_app: Callable[[Engine], Any],
    listener: socket.socket,
    server: str,
    backend: str,
    limits: ConnectionLimits,
    *,
    drain: float = 0.0,
    grace: float,
    certificate: Certificate | None = None,
    ready: Callable[[], object],
    at_once: Callable[[], object],
) -> None:
    """Serve on *listener* until SIGINT, SIGTERM or SIGHUP.

    After the signal, ``/health`` reports that the server is draining, and it serves for *drain*
    seconds more. Then it accepts no new requests. Open streams have *grace* seconds to end; those
    that remain end with an error event. A second signal calls *at_once*.

    Args:
        engine_context: the unopened block of the engine to serve.
        new_app: makes an application for the engine.
        server: ``"uvicorn"``, on asyncio only, or ``"hypercorn"``.
        backend: the event loop that this runs in, ``"asyncio"`` or ``"trio"``.
        limits: of the connections.
        drain: seconds in which a load balancer can notice that this server is about to end.
        grace: seconds for open streams to end.
        certificate: to serve with TLS.
        ready: called as soon as requests are accepted.
        at_once: exits the process.
    """
    ending, stop, served = Event(), Event(), Event()
    async with create_task_group() as tasks:
        async with engine_context as engine:
            app = new_app(engine)

            async def serve_until_stopped() -> None:
                try:
                    timeout = grace + SHUTDOWN_SEND_TIMEOUT
                    await serve(app, listener, server, backend, limits, stop, timeout, certificate)
                finally:
                    served.set()
                    ending.set()

            def end() -> None:
                if ending.is_set():
                    at_once()
                ending.set()

            tasks.start_soon(_at_each_signal, end)
            tasks.start_soon(serve_until_stopped)
            ready()
            await ending.wait()
            app.state.is_draining = True  # `/health` reads it
            with move_on_after(drain):
                await served.wait()
            stop.set()
            with move_on_after(grace):
                await served.wait()
        # The engine has been closed, and its streams have ended with an error.
        await served.wait()
        tasks.cancel_scope.cancel()


async def _at_each_signal(act: Callable[[], object]) -> None:
    try:
        with open_signal_receiver(*ending_signals()) as received:
            async for _ in received:
                act()
    except NotImplementedError:  # asyncio on Windows has no signal handlers
        await _poll_signals(act)


async def _poll_signals(act: Callable[[], object]) -> None:
    received: list[int] = []
    with handling(ending_signals(), lambda number, _: received.append(number)):
        while True:
            await sleep(SIGNAL_POLL)
            while received:
                received.pop()
                act()


async def serve(
    app: Any,
    listener: socket.socket,
    server: str,
    backend: str,
    limits: ConnectionLimits,
    stop: Event,
    timeout: float,
    certificate: Certificate | None = None,
) -> None:
    """Serve *app* until *stop* is set, and then for *timeout* seconds at most, until it is idle."""
    if server == "uvicorn":
        await _uvicorn(app, listener, limits, stop, timeout, certificate)
    else:
        await _hypercorn(app, listener, backend, limits, stop, timeout, certificate)


async def _uvicorn(
    app: Any,
    listener: socket.socket,
    limits: ConnectionLimits,
    stop: Event,
    timeout: float,
    certificate: Certificate | None,
) -> None:
    import uvicorn

    from .uvicorn_connections import LimitedConfig

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # `run` handles them

    config = LimitedConfig(
        app,
        limits,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=round(timeout),
        ssl_certfile=certificate and certificate.certificate,
        ssl_keyfile=certificate and certificate.key,
    )
    server = Server(config)

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    async with create_task_group() as tasks:
        tasks.start_soon(end)
        with CancelScope(shield=True):  # if cancelled, it would leave its sockets open
            await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def _hypercorn(
    app: Any,
    listener: socket.socket,
    backend: str,
    limits: ConnectionLimits,
    stop: Event,
    timeout: float,
    certificate: Certificate | None,
) -> None:
    from .hypercorn_connections import LimitedConfig, limited_connections

    hypercorn = import_module(f"hypercorn.{backend}")
    config = LimitedConfig(limits)
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = timeout
    config.loglevel = "WARNING"
    config.backlog = BACKLOG  # it calls listen() again
    if certificate is not None:
        config.certfile = certificate.certificate
        config.keyfile = certificate.key or certificate.certificate
    with limited_connections(hypercorn.run, backend):
        await hypercorn.serve(app, config, shutdown_trigger=stop.wait)
