"""`call_until_stopped`: a producer awaits something in the event loop, until its stream is stopped.

What `anyio.from_thread.run` awaits is cancelled with the task that waits for the thread. In a
thread that serves many streams, that task goes on when one of them is stopped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

from anyio import CancelScope, create_task_group, from_thread, get_cancelled_exc_class, sleep

from .._errors import GenerationStopped, raise_preserving_context
from .delivery import QUEUE_POLL
from .held_turns import await_holding, held_turns
from .state import StreamState

__all__ = ["call_until_stopped"]

T = TypeVar("T")


def call_until_stopped(state: StreamState[Any], func: Callable[[], Awaitable[T]]) -> T:
    """Await ``func()`` in the event loop, and return its result. In the producer's thread.

    Raises:
        GenerationStopped: the stream was stopped.
        BaseException: what *func* raised.
    """
    outcome: _Outcome[T] = _Outcome()
    waited_for = partial(await_holding, held_turns(), func)
    from_thread.run(partial(_await_until_stopped, state, waited_for, outcome))
    if outcome.error is not None:
        raise_preserving_context(outcome.error)
    if not outcome.values:
        raise GenerationStopped
    return outcome.values.pop()


class _Outcome(Generic[T]):
    def __init__(self) -> None:
        self.values: list[T] = []  # the result, unless it was stopped or has failed
        self.error: BaseException | None = None


async def _await_until_stopped(
    state: StreamState[Any], func: Callable[[], Awaitable[T]], outcome: _Outcome[T]
) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(_cancel_when_stopped, state, tasks.cancel_scope)
        try:
            outcome.values.append(await func())
        except get_cancelled_exc_class():
            raise
        except BaseException as exc:  # the task group would wrap it
            outcome.error = exc
        tasks.cancel_scope.cancel()


async def _cancel_when_stopped(state: StreamState[Any], scope: CancelScope) -> None:
    while not state.should_end:
        await sleep(QUEUE_POLL)
    scope.cancel()
