"""Finds calls that would wait for themselves: work that holds the only turn, and waits for it.

A producer can wait for code in the event loop, by `Stopping.wait_for` or through
`anystreamer.sync`. If that code needs the turn that the producer has, neither goes on. Which turns
a thread has is known in the thread, and goes with the call in a context variable. A task that this
code starts and does not wait for inherits the variable, so the tasks between the two count as well.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from anyio import CapacityLimiter, get_current_task, get_running_tasks

__all__ = ["await_holding", "check_limiter", "check_turn", "held_turns", "holding"]

T = TypeVar("T")


class _Thread(threading.local):
    turns: tuple[object, ...] = ()


class _Wait:
    """A thread waits for a task."""

    def __init__(self, turns: tuple[object, ...]) -> None:
        self.turns = turns  # that the thread has
        self.task_id: int | None = get_current_task().id  # None once it does not wait any more


_thread = _Thread()
_wait: ContextVar[_Wait | None] = ContextVar("anystreamer_wait", default=None)


class holding:
    """While it is entered, the current thread holds a turn that no other thread can get.

    Nothing is noted for None, and for a limiter with several tokens.
    """

    # Not a generator: `contextlib` would set attributes of the exceptions that pass through it, and
    # some refuse that.

    def __init__(self, turn: object) -> None:
        self._turn = turn
        self._before: tuple[object, ...] = ()

    def __enter__(self) -> None:
        self._before = _thread.turns
        if _is_only(self._turn):
            _thread.turns = (*self._before, self._turn)

    def __exit__(self, *exc: object) -> None:
        _thread.turns = self._before


def held_turns() -> tuple[object, ...]:
    """The turns that the current thread has."""
    return _thread.turns


async def await_holding(turns: tuple[object, ...], func: Callable[[], Awaitable[T]]) -> T:
    """Await ``func()`` in the event loop, for a thread that has *turns* and waits for it."""
    wait = _Wait(turns)
    token = _wait.set(wait)
    try:
        return await func()
    finally:
        wait.task_id = None
        _wait.reset(token)


def check_turn(turn: object, shown: str) -> None:
    """Refuse a call that needs a turn, if the thread that has it waits for this call.

    Args:
        turn: the object that only one thread can hold.
        shown: its name in the message.

    Raises:
        RuntimeError: the call would wait for itself.
    """
    wait = _wait.get()
    if wait is None or wait.task_id is None or not any(each is turn for each in wait.turns):
        return
    if _is_within(wait.task_id):
        raise RuntimeError(
            f"this call needs {shown}, which is held by code that waits for this call: the call "
            "would wait for itself. Make it after the producer or the callback has returned"
        )


def check_limiter(find_limiter: Callable[[], CapacityLimiter | None]) -> None:
    """The same for the turn of a limiter, which is looked up only if a thread waits.

    Raises:
        RuntimeError: the call would wait for itself.
    """
    if _wait.get() is not None:
        check_turn(find_limiter(), "the turn of its limiter or its model")


def _is_only(turn: object) -> bool:
    if isinstance(turn, CapacityLimiter):
        return turn.total_tokens == 1
    return turn is not None


def _is_within(task_id: int) -> bool:
    """Whether the current task is the one with this id, or in a task group that it waits for."""
    parents = {each.id: each.parent_id for each in get_running_tasks()}
    current: int | None = get_current_task().id
    while current is not None and current != task_id:
        current = parents.get(current)
    return current == task_id
