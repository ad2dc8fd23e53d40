"""Runs an application on uvicorn or hypercorn until a signal, and then shuts it down."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
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

__all__ = ["listening", "run", "url_of"]

# How long a server may take to send the last parts, once the engine is closed (seconds).
SHUTDOWN_SEND_TIMEOUT = 5.0

ENDING = (signal.SIGINT, signal.SIGTERM)

# How often to check for a signal where the event loop itself cannot handle them (seconds).
SIGNAL_POLL = 0.1

# Connections that wait until a busy loop accepts them. One more has to retry a second later.
BACKLOG = 2048


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises OSError if it cannot."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def url_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def run(
    engine_context: AbstractAsyncContextManager[Engine],
    new_app: Callable[[Engine], Any],
    listener: socket.socket,
    server: str,
    backend: str,
    *,
    grace: float,
    ready: Callable[[], object],
    at_once: Callable[[], object],
) -> None:
    """Serve on *listener* until SIGINT or SIGTERM.

    From then on no new requests are accepted. Open streams have *grace* seconds to end; the others
    then end with an error event. A second signal calls *at_once*.

    Args:
        engine_context: the unopened block of the engine to serve.
        new_app: makes an application for the engine.
        server: ``"uvicorn"``, on asyncio only, or ``"hypercorn"``.
        backend: the event loop that this runs in, ``"asyncio"`` or ``"trio"``.
        grace: seconds for open streams to end.
        ready: called as soon as requests are accepted.
        at_once: exits the process.
    """
    stop, served = Event(), Event()
    async with create_task_group() as tasks:
        async with engine_context as engine:
            app = new_app(engine)
            hypercorn = _hypercorn_trio if backend == "trio" else _hypercorn_asyncio
            serve = _uvicorn if server == "uvicorn" else hypercorn

            async def serve_until_stopped() -> None:
                try:
                    await serve(app, listener, stop, grace + SHUTDOWN_SEND_TIMEOUT)
                finally:
                    served.set()
                    stop.set()

            def end() -> None:
                if stop.is_set():
                    at_once()
                stop.set()

            tasks.start_soon(_at_each_signal, end)
            tasks.start_soon(serve_until_stopped)
            ready()
            await stop.wait()
            with move_on_after(grace):
                await served.wait()
        # The engine has been closed, and its streams have ended with an error.
        await served.wait()
        tasks.cancel_scope.cancel()


async def _at_each_signal(act: Callable[[], object]) -> None:
    try:
        with open_signal_receiver(*ENDING) as received:
            async for _ in received:
                act()
    except NotImplementedError:  # asyncio on Windows has no signal handlers
        await _poll_signals(act)


async def _poll_signals(act: Callable[[], object]) -> None:
    received: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: received.append(number)) for each in ENDING
    }
    try:
        while True:
            await sleep(SIGNAL_POLL)
            while received:
                received.pop()
                act()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


async def _uvicorn(app: Any, listener: socket.socket, stop: Event, timeout: float) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # we handle them

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=round(timeout),
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


async def _hypercorn_asyncio(
    app: Any, listener: socket.socket, stop: Event, timeout: float
) -> None:
    from hypercorn.asyncio import serve

    await serve(app, _hypercorn_config(listener, timeout), shutdown_trigger=stop.wait)


async def _hypercorn_trio(app: Any, listener: socket.socket, stop: Event, timeout: float) -> None:
    from hypercorn.trio import serve

    await serve(app, _hypercorn_config(listener, timeout), shutdown_trigger=stop.wait)


def _hypercorn_config(listener: socket.socket, timeout: float) -> Any:
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = timeout
    config.loglevel = "WARNING"
    config.backlog = BACKLOG  # it calls listen() again
    return config
