"""Sending a response in parts: a disconnect cancels it, and comments keep an idle one alive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from anyio import (
    Lock,
    create_task_group,
    current_time,
    get_cancelled_exc_class,
    move_on_after,
    sleep,
)
from starlette.types import Message, Receive, Send

from .._errors import raise_preserving_context
from .._reporting import SafeLogger

__all__ = [
    "EVENT_STREAM",
    "NO_CACHE_HEADERS",
    "BodySender",
    "cancel_on_disconnect",
    "check_keep_alive",
    "log",
    "run_all",
]

log = SafeLogger("anystreamer.server")

EVENT_STREAM = "text/event-stream"
# How long a response that the server cuts off may take to send its error (seconds). The server is
# shutting down, and waits for it.
ERROR_SEND_TIMEOUT = 1.0

# Neither caches nor nginx may hold back parts of a response.
NO_CACHE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def check_keep_alive(seconds: float | None) -> None:
    """Refuse a pause between comments that cannot be kept. Raises ValueError."""
    if seconds is not None and not seconds > 0:
        raise ValueError(
            f"keep_alive must be more than 0 seconds, got {seconds!r}; None sends no comments"
        )


async def cancel_on_disconnect(
    receive: Receive, work: Callable[[], Awaitable[None]], cut: Callable[[], Awaitable[None]]
) -> None:
    """Do *work*, and cancel it when the client disconnects.

    What *work* raises is raised unchanged, not in a group; or logged, if the client has
    disconnected. If another scope cancels it, as servers do at the end of their time to shut down,
    *cut* has a moment to send an error to the client.
    """
    error: Exception | None = None
    async with create_task_group() as tasks:
        disconnected = False

        async def watch() -> None:
            nonlocal disconnected
            while (await receive())["type"] != "http.disconnect":
                pass
            disconnected = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            await work()
        except get_cancelled_exc_class():
            if not disconnected:
                # The server may already have closed the connection.
                with move_on_after(ERROR_SEND_TIMEOUT, shield=True), suppress(Exception):
                    await cut()
            raise
        except Exception as exc:
            if disconnected:
                log.error("a request failed after its client had disconnected", exc_info=exc)
            else:
                error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise_preserving_context(error)


async def run_all(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do all of *works* at once. The first error ends the others, and is raised."""
    if len(works) == 1:
        return await works[0]()
    errors: list[Exception] = []
    async with create_task_group() as tasks:

        async def run(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            except get_cancelled_exc_class():
                raise
            except Exception as exc:
                errors.append(exc)
                tasks.cancel_scope.cancel()

        for work in works:
            tasks.start_soon(run, work)
    if errors:
        raise_preserving_context(errors[0])


class BodySender:
    """A response whose body several tasks send in parts. Its head goes out with the first part."""

    def __init__(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        # Acquiring it is a checkpoint, which not every server's send() is: without one, a stream
        # that always has text would hold the event loop, and a disconnect would go unnoticed.
        self._lock = Lock()
        self._sent_at = current_time()
        self.has_started = False  # a head has been sent: ours, or that of another response
        self.is_open = False  # our head has been sent, and the last part has not

    async def __call__(self, message: Message) -> None:
        """Send a message of another response, in place of this one: as a server's ``send``."""
        self.has_started = True
        await self._send(message)

    async def send(self, part: str) -> None:
        """Send a part of the body."""
        async with self._lock:
            await self._start()
            await self._send(_body(part, more_body=True))
            self._sent_at = current_time()

    async def end(self, part: str = "") -> None:
        """Send the last part."""
        async with self._lock:
            await self._start()
            self.is_open = False
            await self._send(_body(part, more_body=False))

    async def _start(self) -> None:
        if not self.has_started:
            self.has_started = self.is_open = True
            await self._send(self._head)
            self._sent_at = current_time()

    async def with_keep_alive(
        self, seconds: float | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do *work*, and send a comment after this many seconds without another part.

        What *work* raises is raised unchanged, not in a group.
        """
        error: Exception | None = None
        async with create_task_group() as tasks:
            if seconds is not None:
                tasks.start_soon(self._keep_alive, seconds)
            try:
                await work()
            except Exception as exc:
                error = exc
            tasks.cancel_scope.cancel()
        if error is not None:
            raise_preserving_context(error)

    async def _keep_alive(self, seconds: float) -> None:
        while True:
            rest = self._sent_at + seconds - current_time()
            if rest <= 0:
                await self.send(": keep-alive\n\n")
            else:
                await sleep(rest)


def _body(part: str, *, more_body: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": part.encode(), "more_body": more_body}
