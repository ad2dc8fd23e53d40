"""`Owned`: opens an ``async with`` block in the portal's loop, for callers with no event loop."""

from __future__ import annotations

import contextlib
import weakref
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Self, TypeVar

import anyio

from .._bridge import LoopGone, SafeEvent
from .._workers import WorkThreads
from ._portal import Tasks, portal

__all__ = ["OWNER_POLL", "Owned"]

# How often the loop checks whether what is open has been forgotten (seconds).
OWNER_POLL = 1.0

ShownT = TypeVar("ShownT")


class Owned(Generic[ShownT]):
    """An engine or a worker of its own, for ``with``; or for `open` and `close`.

    One that is forgotten closes by itself.
    """

    def __init__(self, name: str, context: AbstractAsyncContextManager[ShownT]) -> None:
        self._name = name  # of the public function, for messages
        self._context = context
        self._keeper: Keeper[ShownT] | None = None

    def open(self) -> Self:
        """Open it, and return it.

        Raises:
            RuntimeError: it has been opened before.
            BaseException: it cannot start.
        """
        if self._keeper is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        tasks = portal.tasks()
        self._keeper = Keeper(self._context, tasks, weakref.ref(self))
        tasks.call_from_thread(self._keeper.open)
        return self

    def close(self) -> None:
        """End the streams that are open, and wait for its threads. Again, it does nothing.

        Raises:
            RuntimeError: in one of its threads, which would wait for itself.
            BaseException: its end failed.
        """
        if self._keeper is not None:
            shown = self._keeper.shown
            threads = None if shown is None else self._threads_of(shown)
            if threads is not None and threads.include_this_one:
                raise RuntimeError(
                    f"close() was called in a thread that {self._name}() owns: it would wait for "
                    "itself. Call it after the producer or the callback has returned"
                )
            with contextlib.suppress(LoopGone):  # and with it what was open there
                self._keeper.tasks.call_from_thread(self._keeper.close, "join")

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _threads_of(self, shown: ShownT) -> WorkThreads | None:
        """The threads that run what its users pass, if it has such threads."""
        return None

    @property
    def _shown(self) -> ShownT:
        """What the block has given.

        Raises:
            TypeError: it has not been opened.
        """
        if self._keeper is None or self._keeper.shown is None:
            name, kind = self._name, self._name.removeprefix("open_")
            raise TypeError(
                f"{name}() must be opened first: 'with {name}(...) as {kind}:', "
                f"or '{kind} = {name}(...).open()' and later '{kind}.close()'"
            )
        return self._keeper.shown


class Keeper(Generic[ShownT]):
    """Keeps a block open in one task of the loop, since one task has to leave it."""

    def __init__(
        self,
        context: AbstractAsyncContextManager[ShownT],
        tasks: Tasks,
        owner: weakref.ref[Any],
    ) -> None:
        self.tasks = tasks
        self.shown: ShownT | None = None
        self._context = context
        self._owner = owner
        self._opened_or_failed = SafeEvent()
        self._closing = SafeEvent()
        self._ended = SafeEvent()
        self._was_started = False
        self._error: BaseException | None = None

    async def open(self) -> None:
        """Open the block, unless it has been closed. Raises the exception of its entry."""
        if self._closing.is_set():
            return
        self._was_started = True
        self.tasks.start(self._keep())
        await self._opened_or_failed.wait()
        self._raise_error()

    async def close(self) -> None:
        """Leave the block. Raises the exception of its end, once."""
        self._closing.set()
        if self._was_started:  # a Ctrl-C can have struck before
            await self._ended.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _keep(self) -> None:
        try:
            async with self._context as self.shown:
                self._opened_or_failed.set()
                while self._owner() is not None and not self._closing.is_set():
                    with anyio.move_on_after(OWNER_POLL):
                        await self._closing.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:  # one that is not an Exception would end the whole loop
            self._error = exc
        finally:
            self._opened_or_failed.set()
            self._ended.set()
