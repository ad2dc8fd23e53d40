"""Sends the body of a response in parts: keeps an idle one alive, and notices a stalled client."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

from anyio import Event, create_task_group, move_on_after, sleep
from starlette.types import Message, Send

from .._bridge import validate_seconds
from .._errors import raise_preserving_context
from .._workers import validate_count

__all__ = ["BodySender", "ClientStalled", "SendLimits"]

# A response checks this often whether its client is stalled (seconds).
STALL_CHECK_INTERVAL = 2.0


class ClientStalled(Exception):
    """The client does not receive the parts of its response."""


@dataclass(frozen=True, kw_only=True)
class SendLimits:
    """When to send a comment, and when a client counts as stalled. By default neither happens.

    Raises:
        TypeError, ValueError: for a number that cannot work.
    """

    keep_alive: float | None = None  # seconds without another part, until a comment is sent
    timeout: float | None = None  # seconds for the client to take a part
    max_unsent_tokens: int | None = None  # that wait while the client takes no part
    max_unsent_bytes: int | None = None  # of the parts that wait, while the client takes none

    def __post_init__(self) -> None:
        validate_seconds("keep_alive", self.keep_alive)
        validate_seconds("send_timeout", self.timeout)
        validate_count("max_unsent_tokens", self.max_unsent_tokens, 1)
        validate_count("max_unsent_bytes", self.max_unsent_bytes, 1)

    @property
    def check_interval(self) -> float:
        """How often to check whether the client is stalled, in seconds."""
        if self.timeout is None:
            is_bounded = (self.max_unsent_tokens, self.max_unsent_bytes) != (None, None)
            return STALL_CHECK_INTERVAL if is_bounded else math.inf
        return min(STALL_CHECK_INTERVAL, self.timeout / 4)


class BodySender:
    """A response whose body several tasks send in parts. Its head goes out with the first part."""

    def __init__(
        self,
        send: Send,
        status: int,
        headers: list[tuple[bytes, bytes]],
        abort: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._send = send
        self._abort = abort  # closes the connection, where the server can
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        self._sent_at = perf_counter()
        self._sending_since: float | None = None  # while the server takes a part
        self._part_taken: Event | None = None  # set when the next task can send its part
        self._unsent_bytes = 0  # of the parts that the server takes, or that wait for that
        self.is_stalled = False  # its client takes no parts
        self.has_started = False  # a head has been sent: ours, or another response's
        self.is_open = False  # our head has been sent, and the last part has not

    async def __call__(self, message: Message) -> None:
        """Send a message of another response, in place of this one: as a server's ``send``."""
        self.has_started = True
        await self._send(message)

    async def send(self, part: str) -> None:
        """Send a part of the body."""
        body = part.encode()
        self._unsent_bytes += len(body)
        try:
            await self._begin()
            try:
                await self._start()
                await self._send(_body(body, more_body=True))
                self._sent_at = perf_counter()
            finally:
                self._release()
        finally:
            self._unsent_bytes -= len(body)

    async def end(self, part: str = "") -> None:
        """Send the last part."""
        await self._begin()
        try:
            await self._start()
            self.is_open = False
            await self._send(_body(part.encode(), more_body=False))
        finally:
            self._release()

    async def fail(self, error: Exception) -> None:
        """Make each middleware fail that would otherwise end the body as if it were complete.

        Starlette's ``BaseHTTPMiddleware`` does, before it raises the application's error.
        """
        with suppress(Exception):
            await self._send(_body(_Unsendable.because_of(error), more_body=True))

    async def _begin(self) -> None:
        """Wait until no other task sends. If none does, this is not a checkpoint.

        A checkpoint for each part would take an iteration of the event loop, and anyio's `Lock`
        would look up the current task. `ReadyItems` says where the checkpoints are.
        """
        while self._sending_since is not None:
            if self._part_taken is None:
                self._part_taken = Event()
            await self._part_taken.wait()
        self._sending_since = perf_counter()

    def _release(self) -> None:
        self._sending_since = None
        if self._part_taken is not None:
            self._part_taken.set()
            self._part_taken = None

    async def _start(self) -> None:
        if not self.has_started:
            self.has_started = self.is_open = True
            await self._send(self._head)
            self._sent_at = perf_counter()

    async def within(
        self,
        limits: SendLimits,
        unsent_tokens: Callable[[], int],
        work: Callable[[], Awaitable[None]],
    ) -> None:
        """Do *work*, which sends parts, and watch its *limits* meanwhile.

        What *work* raises is raised unchanged, not in a group.

        Raises:
            ClientStalled: the client has not taken a part in time, or too much waits for it.
        """
        error: Exception | None = None
        async with create_task_group() as tasks:

            async def watch() -> None:
                await self._watch(limits, unsent_tokens)
                self.is_stalled = True
                if self._abort is not None:  # not every server's send() can be cancelled
                    await self._abort()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            try:
                await work()
            except Exception as exc:
                error = exc
            tasks.cancel_scope.cancel()
        if error is not None:
            raise_preserving_context(error)
        if self.is_stalled:
            raise ClientStalled

    async def _watch(self, limits: SendLimits, unsent_tokens: Callable[[], int]) -> None:
        """Keep the response alive. Returns when its client is stalled."""
        while not self._is_stalled(limits, unsent_tokens):
            rest = self._until_keep_alive(limits.keep_alive)
            if rest > 0:
                await sleep(min(rest, limits.check_interval))
                continue
            with move_on_after(limits.timeout) as scope:
                await self.send(": keep-alive\n\n")
            if scope.cancelled_caught:
                return

    def _until_keep_alive(self, seconds: float | None) -> float:
        """Seconds until a comment is due. While a part is being sent, that is never."""
        if seconds is None or self._sending_since is not None:
            return math.inf
        return self._sent_at + seconds - perf_counter()

    def _is_stalled(self, limits: SendLimits, unsent_tokens: Callable[[], int]) -> bool:
        if self._sending_since is None:
            return False
        seconds = perf_counter() - self._sending_since
        if limits.timeout is not None and seconds > limits.timeout:
            return True
        # A part that the server has only just got says nothing about the client.
        return seconds >= limits.check_interval and (
            _exceeds(unsent_tokens(), limits.max_unsent_tokens)
            or _exceeds(self._unsent_bytes, limits.max_unsent_bytes)
        )


class _Unsendable(bytes):
    """A part of a body that middlewares pass on, and that raises an error where it is sent."""

    _error: Exception

    @classmethod
    def because_of(cls, error: Exception) -> Self:
        part = cls(b" ")  # servers leave out an empty one
        part._error = error
        return part

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise self._error

    def __bytes__(self) -> bytes:
        raise self._error


def _exceeds(number: int, limit: int | None) -> bool:
    return limit is not None and number > limit


def _body(body: bytes, *, more_body: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more_body}
