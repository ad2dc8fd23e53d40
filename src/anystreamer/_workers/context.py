"""The ``async with`` block that owns an engine or a worker: opens it, closes it, and joins it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from anyio import CancelScope, get_cancelled_exc_class, sleep

from .._bridge import JOIN_POLL, SingleErrorContext, UngroupedTaskGroup, uninterrupted
from .._errors import is_kind, raise_preserving_context
from .owner import Owner

__all__ = ["OwnerContext"]

OwnerT = TypeVar("OwnerT", bound=Owner)
ShownT = TypeVar("ShownT")


class OwnerContext(
    SingleErrorContext, AbstractAsyncContextManager[ShownT], Generic[OwnerT, ShownT]
):
    """The ``async with`` block of an owner. It gives its users what `_show` returns."""

    _name: str  # of the public function, for messages

    def __init__(self, new_owner: Callable[[], OwnerT]) -> None:
        self._new_owner = new_owner
        self._owner: OwnerT | None = None
        self._tasks: UngroupedTaskGroup

    @abstractmethod
    def _show(self, owner: OwnerT) -> ShownT:
        """Return what the block gives to its users."""

    if not TYPE_CHECKING:  # type checkers refuse the same before the program runs

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(name)
            kind = self._name.removeprefix("open_")
            raise AttributeError(
                f"{self._name}() must be opened first: 'async with {self._name}(...) as {kind}:', "
                f"then '{kind}.{name}'",
                name=name,
                obj=self,
            )

    @uninterrupted
    async def __aenter__(self) -> ShownT:
        if self._owner is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._tasks = UngroupedTaskGroup()
        owner = self._new_owner()
        owner.own_tasks(self._tasks)
        self._owner = owner
        await self._tasks.open()
        try:
            await owner.open()
            shown = self._show(owner)  # within, since a Ctrl-C can strike there
        except BaseException as exc:
            failure = exc
        else:
            return shown
        await self.__aexit__(type(failure), failure, None)
        raise_preserving_context(failure)

    async def _leave(self, body: BaseException | None) -> BaseException | None:
        """Leave the block. Returns the one exception to raise."""
        owner = self._owner
        assert owner is not None
        if owner.tasks.home.is_in_parent:
            return body  # the owner is there, and goes on for the block there
        try:
            owner.check_loop()
        except RuntimeError as elsewhere:
            return elsewhere if body is None else body
        return await self._close(owner, body)

    async def _close(self, owner: OwnerT, body: BaseException | None) -> BaseException | None:
        """Close the owner, and wait for its end. Returns the one exception to raise."""
        cancellation = get_cancelled_exc_class()
        owner.close()
        owner.tasks.end_calls()
        raised = await self._tasks.close(body)
        if raised is None and is_kind(body, cancellation):
            # Raised by our own task group, which nothing of ours has cancelled: a stream's task
            # was cancelled natively before its first step, and took the others with it. The body
            # must not end without an error.
            raised = owner.closed_error()
        owner.finish_if_never_started()
        while not owner.task_ended.is_set() or owner.tasks.has_calls:
            with CancelScope(shield=True):
                try:
                    await owner.task_ended.wait()
                    await sleep(JOIN_POLL if owner.tasks.has_calls else 0)
                except BaseException as exc:
                    raised = exc if raised is None else raised
        if raised is not None and not is_kind(raised, cancellation):
            return raised
        return body if body is not None and not is_kind(body, cancellation) else raised
