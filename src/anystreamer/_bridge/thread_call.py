"""`ThreadCall`: a thread has something awaited in an event loop, and waits for the result.

An exception can strike the thread while it waits: a Ctrl-C, or what a handler of another signal
raises. Then `IfInterrupted` decides what becomes of the call. A receive(), for example, must not go
on: it would take an item that no caller gets, and a second receive() at once would be refused.

Such an exception strikes the main thread alone. If it struck one of Python's or anyio's own waits,
a lock of theirs could stay locked, and the loop would wait for it forever. So the main thread
waits for a bare lock only, and another thread talks to the loop for it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from anyio import CancelScope, from_thread, get_cancelled_exc_class
from anyio.lowlevel import EventLoopToken

from .._errors import EngineClosed
from .held_turns import await_holding, held_turns
from .join import ThreadEvent
from .side_threads import call_aside

__all__ = ["IfInterrupted", "LoopGone", "ThreadCall"]

T = TypeVar("T")

IfInterrupted = Literal["leave", "cancel", "join"]
"""What becomes of a call when an exception strikes the thread that waits for it.

``"leave"``: the call continues without the thread. ``"cancel"``: the call is cancelled, and the
thread waits until it has ended. ``"join"``: the thread continues to wait. After that, the exception
is raised.
"""

# How often a thread that waits for the loop checks whether the loop has gone (seconds).
CALL_POLL = 1.0

# This many exceptions that strike the thread end its wait in any case: as on asyncio, the third
# Ctrl-C gives up.
GIVES_UP_AT = 3


class LoopGone(EngineClosed):
    """The owner of the streams has gone, and perhaps its event loop."""


class Starter(Protocol):
    """Where the call gets a task."""

    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine. Raises RuntimeError if no task can be started any more."""


class ThreadCall(Generic[T]):
    """One call. Made and used in the thread that waits, except where a comment names another place.

    Args:
        func: is called and awaited in the loop.
        start: starts its task there.
        token: of the loop.
        kind: of the owner of the tasks, for messages.
    """

    def __init__(
        self, func: Callable[[], Awaitable[T]], start: Starter, token: EventLoopToken, kind: str
    ) -> None:
        self._func = partial(await_holding, turns, func) if (turns := held_turns()) else func
        self._start = start
        self._token = token
        self._kind = kind
        self._is_unwanted = False  # the loop is to cancel it
        self._is_over = False
        self._gone: BaseException | None = None  # why the loop could not be asked
        self._over = ThreadEvent()
        self._values: list[T] = []  # the result, if there is one
        self._error: BaseException | None = None
        # Made on the loop:
        self._scope: CancelScope | None = None  # of the task
        self._coroutine: Coroutine[Any, Any, None] | None = None

    def wait(self, if_interrupted: IfInterrupted) -> None:
        """Make the call, and wait for its end.

        Raises:
            LoopGone: the loop, or the owner of its tasks, has ended.
            BaseException: what struck this thread.
        """
        interrupts: list[BaseException] = []
        while not self._is_over:
            try:
                self._start_and_wait()
            except LoopGone:
                raise
            except BaseException as exc:
                interrupts.append(exc)
                if if_interrupted == "leave" or len(interrupts) == GIVES_UP_AT:
                    raise
                self._is_unwanted = if_interrupted == "cancel"
        if interrupts:
            try:
                raise interrupts[0]
            finally:
                del interrupts  # their tracebacks lead here

    def result(self) -> T:
        """Return what *func* has returned, after `wait`. Raises what it raised."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._values[0]

    def _start_and_wait(self) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            call_aside(partial(copy_context().run, self._ask))
        else:
            self._ask()
        while not self._is_over:
            self._over.wait(CALL_POLL)
            if not self._is_over and (self._gone is not None or self._never_began):
                raise LoopGone(self._kind) from self._gone

    def _ask(self) -> None:
        """Have the loop start the call. In the thread that waits, or in one of its own."""
        try:
            from_thread.run_sync(self._update, token=self._token)
        except BaseException as exc:  # the task group has ended, or the loop
            self._gone = exc
            self._over.set()

    @property
    def _never_began(self) -> bool:
        """Whether its task has ended before the first step, and has set nothing."""
        coroutine = self._coroutine
        return coroutine is not None and (
            inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        )

    # -- on the loop

    def _update(self) -> None:
        """Start the call, unless that was done; cancel it if it is unwanted."""
        if self._scope is None:
            self._scope, self._coroutine = CancelScope(), self._run()
            self._start(self._coroutine)
        if self._is_unwanted:
            self._scope.cancel()

    async def _run(self) -> None:
        self._error = LoopGone(self._kind)  # if the owner of the task is cancelled
        assert self._scope is not None
        try:
            with self._scope:
                self._values.append(await self._func())
            self._error = None
        except get_cancelled_exc_class():
            raise
        except BaseException as exc:
            self._error = exc
        finally:
            self._is_over = True
            self._over.set()
