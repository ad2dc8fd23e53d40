"""What responses share: headers, the log, and running their work until the client disconnects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from anyio import Event, create_task_group, get_cancelled_exc_class, move_on_after
from starlette.types import Receive

from .._errors import raise_preserving_context
from .._reporting import SafeLogger

__all__ = [
    "EVENT_STREAM",
    "STREAM_HEADERS",
    "cancel_on_disconnect",
    "log",
    "run_all",
]

log = SafeLogger("anystreamer.server")

EVENT_STREAM = "text/event-stream"
# How long a response that the server cuts off may take to send its error (seconds). The server is
# shutting down, and waits for it.
ERROR_SEND_TIMEOUT = 1.0

# Neither caches nor proxies may hold back parts of a response. A proxy that compresses responses
# collects parts until it has enough of them. It does not do so if a response has an encoding.
STREAM_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
    "content-encoding": "identity",
}


async def cancel_on_disconnect(
    receive: Receive, work: Callable[[], Awaitable[None]], cut: Callable[[], Awaitable[None]]
) -> bool:
    """Do *work*, and cancel it when the client disconnects. Returns whether it came to its end.

    *work* must not send the last part of a response: some servers announce a disconnect while they
    still send it, and a cancelled send would leave their connection open.

    What *work* raises is raised unchanged, not in a group; or logged, if the client has
    disconnected. If another scope cancels *work*, as servers do when their time to shut down is
    over, *cut* has a moment to send an error to the client.
    """
    error: Exception | None = None
    is_done = False
    async with create_task_group() as tasks:
        disconnected = Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            disconnected.set()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            await work()
            is_done = True
        except get_cancelled_exc_class():
            if not disconnected.is_set():
                # The server may already have closed the connection.
                with move_on_after(ERROR_SEND_TIMEOUT, shield=True), suppress(Exception):
                    await cut()
            raise
        except Exception as exc:
            if disconnected.is_set():
                log.error("a request failed after its client had disconnected", exc_info=exc)
            else:
                error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise_preserving_context(error)
    return is_done


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
