"""Sending while a client listens: a disconnect cancels, and an idle event stream is kept alive."""

from __future__ import annotations

import logging
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

__all__ = [
    "EVENT_STREAM",
    "NO_CACHE_HEADERS",
    "BodySender",
    "cancel_on_disconnect",
    "check_keep_alive",
    "log",
    "run_all",
]

log = logging.getLogger("anystreamer.server")

EVENT_STREAM = "text/event-stream"
# What a response may take to say that it has been cut (seconds). Its server is in a hurry.
ERROR_SEND_TIMEOUT = 1.0

# Neither caches nor nginx may hold back what is to be seen at once.
NO_CACHE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def check_keep_alive(seconds: float | None) -> None:
    """Refuse a pause between comments that is none. Raises ValueError."""
    if seconds is not None and not seconds > 0:
        raise ValueError(f"keep_alive must be more than 0 seconds, not {seconds!r}")


async def cancel_on_disconnect(
    receive: Receive, work: Callable[[], Awaitable[None]], cut: Callable[[], Awaitable[None]]
) -> None:
    """Do *work*, and cancel it when the client leaves.

    What *work* raises is raised as it is, in no group; or logged, if the client has left. If it is
    cancelled by others, as servers do when their time to shut down is up, *cut* has a moment to say
    so to the client.
    """
    error: Exception | None = None
    async with create_task_group() as tasks:
        has_left = False

        async def watch() -> None:
            nonlocal has_left
            while (await receive())["type"] != "http.disconnect":
                pass
            has_left = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            await work()
        except get_cancelled_exc_class():
            if not has_left:
                # Who cuts it off may have cut off the way to the client before.
                with move_on_after(ERROR_SEND_TIMEOUT, shield=True), suppress(Exception):
                    await cut()
            raise
        except Exception as exc:
            if has_left:
                log.exception("a request failed whose client had left")
            else:
                error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise_preserving_context(error)


async def run_all(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do all of *works* at once. The first that fails ends the others, and its error is raised."""
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
    """A response, whose body several tasks send in parts."""

    def __init__(self, send: Send) -> None:
        self._send = send
        # Taking it is a checkpoint, which not every server's send() is: without one, a stream that
        # is always ready would hold the loop, and the client's leaving would not be seen.
        self._lock = Lock()
        self._sent_at = 0.0
        self.has_started = False
        self.takes_parts = False

    async def __call__(self, message: Message) -> None:
        """Send a message of any response: as the ``send`` of a server."""
        self.has_started = True
        await self._send(message)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the headers of a response in parts."""
        self.takes_parts = True
        await self({"type": "http.response.start", "status": status, "headers": headers})
        self._sent_at = current_time()

    async def send(self, part: str) -> None:
        """Send a part of the body."""
        async with self._lock:
            await self(_body(part.encode(), more_body=True))
            self._sent_at = current_time()

    async def end(self, part: str = "") -> None:
        """Send the last part."""
        async with self._lock:
            self.takes_parts = False
            await self(_body(part.encode(), more_body=False))

    async def with_keep_alive(
        self, seconds: float | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do *work*, and send a comment whenever nothing else was sent for so long.

        What *work* raises is raised as it is, in no group.
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


def _body(part: bytes, *, more_body: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": part, "more_body": more_body}
