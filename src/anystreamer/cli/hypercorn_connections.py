"""hypercorn's connections, with limits.

hypercorn does not limit their number, or the time in which a client receives nothing. While bytes
of a next request wait, it stops reading, and does not notice that the client disconnects. A client
of HTTP/2 can make it raise exceptions, which on trio would end the server.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from anyio import Event, create_task_group, current_time, move_on_after, sleep
from anyio.lowlevel import checkpoint
from hypercorn import protocol as protocols
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as ProtocolEvent
from hypercorn.protocol.h2 import H2Protocol

from .._reporting import SafeLogger
from .connection_extensions import with_extensions
from .connection_limits import (
    MAX_HEAD_LINES,
    PARSED_AT_ONCE,
    REFUSAL,
    TLS_END_TIMEOUT,
    ConnectionLimits,
    lines_of_head,
)

__all__ = ["LimitedConfig", "limited_connections"]

log: SafeLogger = SafeLogger("anystreamer.server")

# How many bytes are read at once.
READ_AT_ONCE = 64 * 1024


class LimitedConfig(Config):
    """A configuration of hypercorn with limits for connections."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.connection_limits = limits
        self.open_connections = 0
        self.h11_max_incomplete_size: int = limits.max_head_bytes
        # hypercorn's timeout for idle connections runs until a request's head has arrived.
        self.keep_alive_timeout: float = limits.head_timeout


@contextmanager
def limited_connections(run: Any, backend: str) -> Iterator[None]:
    """Let *run*, the module of hypercorn that serves on *backend*, use connections with limits.

    hypercorn has no option for the classes of its connections.
    """
    replaced: dict[str, Any] = {
        "TCPServer": _trio_connection() if backend == "trio" else _asyncio_connection()
    }
    if backend == "asyncio":
        replaced["asyncio"] = _ServersThatClose(run.asyncio)
    original, original_h2 = {name: getattr(run, name) for name in replaced}, H2Protocol
    vars(run).update(replaced)
    setattr(protocols, "H2Protocol", _LimitedH2Protocol)  # noqa: B010  it is not exported
    try:
        yield
    finally:
        vars(run).update(original)
        setattr(protocols, "H2Protocol", original_h2)  # noqa: B010


class _ServersThatClose:
    """asyncio for hypercorn, with servers whose ``wait_closed()`` returns at once.

    hypercorn first waits for its servers, and then for connections, but not longer than their
    grace. From Python 3.12 on, ``wait_closed()`` waits for all connections of a server: one that
    stays open would hold the shutdown forever.
    """

    def __init__(self, asyncio: Any) -> None:
        self._asyncio = asyncio

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asyncio, name)

    async def start_server(self, *args: Any, **kwargs: Any) -> Any:
        """Start a server."""
        server = await self._asyncio.start_server(*args, **kwargs)
        return SimpleNamespace(close=server.close, wait_closed=checkpoint)


# hypercorn has a class of connections for each backend. This one is a base class before either.
_TCPServer: Any = object


class _LimitedConnection(_TCPServer):  # type: ignore[misc]
    """What the connections of both backends add to hypercorn's own ``TCPServer``."""

    app: Any
    config: Any  # a `LimitedConfig`
    idle_task: Any
    protocol: Any

    @abstractmethod
    async def _receive_some(self) -> bytes:
        """Read some bytes; none if the client has disconnected."""

    @abstractmethod
    def _has_unsent(self) -> bool:
        """Whether bytes wait until the client receives them."""

    @abstractmethod
    async def _refuse(self) -> None:
        """Send the refusal, and close."""

    @abstractmethod
    async def _abort(self) -> None:
        """Close at once, and drop the data that was not sent."""

    async def run(self) -> None:
        if self.config.open_connections >= self.config.connection_limits.max_connections:
            return await self._refuse()
        self.config.open_connections += 1
        self._unsent_since: float | None = None
        self._has_read_all = False
        limit = self.config.connection_limits.max_connections
        self.app = with_extensions(
            self.app, self._abort, lambda: self.config.open_connections, limit
        )
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._abort_when_stalled)
                await super().run()
                tasks.cancel_scope.cancel()
        except Exception as exc:  # the other connections go on
            log.warning("a connection failed, and is closed", exc_info=exc)
            await self._abort()
        finally:
            self.config.open_connections -= 1

    # -- what a client sends

    async def _read_data(self) -> None:
        """Read until the client disconnects, also while the parser waits.

        It waits while a request is being answered and bytes of the next one have arrived.
        """
        received = _Received()
        try:
            await self._read_into(received)
        finally:
            # Also if the server ends. From now on, `protocol_send` does not let the timeout for
            # idle connections begin.
            self._has_read_all = True
        # Once more, for a request whose head was being parsed meanwhile.
        await self.protocol.handle(Closed())
        # On trio, hypercorn would wait until its timeout for idle connections has passed, and start
        # it again when the application has ended.
        await self.idle_task.stop()

    async def _read_into(self, received: _Received) -> None:
        limits = self.config.connection_limits
        async with create_task_group() as tasks:
            tasks.start_soon(received.handle_with, self._handle)
            while part := await self._receive_some():
                received.add(part)
                if len(received.data) > limits.max_head_bytes:
                    with move_on_after(limits.head_timeout) as waiting:
                        await received.handled.wait()
                    if waiting.cancelled_caught:
                        await self._abort()
                        break
            await self.protocol.handle(Closed())
            tasks.cancel_scope.cancel()

    async def _handle(self, part: bytes) -> None:
        """Give some bytes to the parser."""
        await self.protocol.handle(RawData(part))
        connection = self.protocol.protocol.connection  # of h11, or of h2, which has own limits
        waiting, _ = getattr(connection, "trailing_data", (b"", False))
        if lines_of_head(waiting) > MAX_HEAD_LINES:
            await self._abort()

    # -- what a client takes

    async def protocol_send(self, event: ProtocolEvent) -> None:
        if self._has_read_all and isinstance(event, Updated):
            return
        if isinstance(event, RawData) and self._unsent_since is None:
            self._unsent_since = current_time()
        await super().protocol_send(event)
        # Not in a `finally`: after a cancellation, the bytes can still wait.
        if isinstance(event, RawData):
            self._unsent_since = None

    async def _abort_when_stalled(self) -> None:
        timeout = self.config.connection_limits.abort_timeout
        if timeout is None:
            return
        while not self._is_stalled(timeout):
            await sleep(timeout / 4)
        await self._abort()

    def _is_stalled(self, timeout: float) -> bool:
        if not self._has_unsent():
            self._unsent_since = None
        return self._unsent_since is not None and current_time() - self._unsent_since > timeout


class _LimitedH2Protocol(H2Protocol):
    """HTTP/2 for clients that stay silent, or send more of a body after its response has ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.streams = _Streams()

    async def initiate(self, *args: Any, **kwargs: Any) -> None:
        await super().initiate(*args, **kwargs)
        # The request that asked for HTTP/2 has stopped the timeout for idle connections.
        await self.send(Updated(idle=self.idle))

    async def send_task(self) -> None:
        try:
            await super().send_task()
        finally:
            # If the server ends, a response can still wait until this task has sent its last part,
            # which never happens now.
            for buffer in self.stream_buffers.values():
                await buffer.close()


class _Streams(dict[int, Any]):
    """Streams by their ids. A missing one drops its events.

    If a response has been sent before all of its request's body has arrived, hypercorn still looks
    up the stream for the rest of the body.
    """

    def __missing__(self, stream_id: int) -> _Ended:
        return _Ended()


class _Ended:
    """Takes the place of a stream that has ended."""

    async def handle(self, event: object) -> None:
        """Drop an event."""


class _Received:
    """Bytes that have been read, and that the parser has not taken yet."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.arrived = Event()
        self.handled = Event()

    def add(self, part: bytes) -> None:
        """Append bytes that have been read."""
        self.data += part
        self.handled = Event()
        self.arrived.set()

    async def handle_with(self, handle: Callable[[bytes], Awaitable[None]]) -> None:
        """Call *handle* with all bytes, `PARSED_AT_ONCE` at a time, until this is cancelled."""
        while True:
            await self.arrived.wait()
            self.arrived = Event()
            while self.data:
                part = bytes(self.data[:PARSED_AT_ONCE])
                del self.data[:PARSED_AT_ONCE]
                await handle(part)
            self.handled.set()


def _asyncio_connection() -> type[Any]:
    from hypercorn.asyncio.tcp_server import TCPServer

    class Connection(_LimitedConnection, TCPServer):
        async def run(self) -> None:
            # Unsent bytes make a send wait, and that time is measured. With a limit of 0, a
            # transport with TLS would also wait without unsent bytes.
            self.writer.transport.set_write_buffer_limits(high=1)
            await super().run()

        async def _initiate_server_close(self) -> None:
            await super()._initiate_server_close()
            if self.writer.get_extra_info("ssl_object"):
                with move_on_after(TLS_END_TIMEOUT), suppress(OSError):
                    await self.writer.wait_closed()
                if not self._has_unsent():
                    await self._abort()

        async def _receive_some(self) -> bytes:
            try:
                return await self.reader.read(READ_AT_ONCE)
            except OSError:
                return b""

        def _has_unsent(self) -> bool:
            return bool(self.writer.transport.get_write_buffer_size())

        async def _refuse(self) -> None:
            self.writer.write(REFUSAL)
            self.writer.close()

        async def _abort(self) -> None:
            self.writer.transport.abort()

    return Connection


def _trio_connection() -> type[Any]:
    from hypercorn.trio.tcp_server import TCPServer

    # Errors of a broken or closed stream are trio's own classes, and only anyio imports trio. A
    # read or a write that fails for another reason ends the connection as well.
    class Connection(_LimitedConnection, TCPServer):
        async def _receive_some(self) -> bytes:
            try:
                return bytes(await self.stream.receive_some(READ_AT_ONCE))
            except Exception:
                return b""

        def _has_unsent(self) -> bool:
            return bool(self.send_lock.locked())

        async def _refuse(self) -> None:
            with suppress(Exception):
                await self.stream.send_all(REFUSAL)
            await self._abort()

        async def _abort(self) -> None:
            await self.stream.aclose()

    return Connection
