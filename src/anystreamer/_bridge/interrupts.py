"""On asyncio, a second Ctrl-C ends the loop between two callbacks, where it does no harm.

The first Ctrl-C cancels the main task. With each further one, the handler of `asyncio.Runner`
raises KeyboardInterrupt wherever the main thread is. In asyncio's and anyio's own code this can
lose a callback: a task is never woken again, and the runner, which waits for all tasks, hangs. So
for as long as the main task runs, the handler here raises it in a callback of the loop.

trio has its own handler. It raises KeyboardInterrupt at any line of code, except in trio's own code
and in functions that are `uninterrupted`. Other handlers are left alone as well.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any, NoReturn, TypeVar

from anyio.lowlevel import current_token

__all__ = ["call_uninterrupted", "interrupt_between_callbacks", "uninterrupted"]

FuncT = TypeVar("FuncT", bound=Callable[..., Any])

# A loop that has not called back for this long (seconds) is blocked. Then a Ctrl-C has to strike
# what blocks it.
BLOCKED = 1.0


def interrupt_between_callbacks() -> None:
    """Replace the handler of `asyncio.Runner`, if it is in place, until its main task has ended.

    Called on the loop.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return
    usual: Any = signal.getsignal(signal.SIGINT)
    if _is_of_a_runner(usual):
        handler = _Handler(usual)
        signal.signal(signal.SIGINT, handler)
        usual.keywords["main_task"].add_done_callback(handler.restore)


def _is_of_a_runner(handler: Any) -> bool:
    # The runner has no public sign of it.
    return (
        isinstance(handler, functools.partial)
        and getattr(handler.func, "__name__", "") == "_on_sigint"
        and "main_task" in handler.keywords
    )


class _Handler:
    """Calls the usual handler, and raises its KeyboardInterrupt between two callbacks.

    It is made on the loop.
    """

    def __init__(self, usual: Any) -> None:
        self._usual = usual
        self._loop: Any = current_token().native_token
        self._since: float | None = None  # monotonic: when the loop was asked to raise
        self._has_raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._usual(number, frame)
        except KeyboardInterrupt:
            if not self._is_left_to_the_loop():
                raise

    def _is_left_to_the_loop(self) -> bool:
        if self._since is not None:
            return monotonic() - self._since < BLOCKED
        self._since = monotonic()
        try:
            self._loop.call_soon_threadsafe(self._interrupt)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _interrupt(self) -> NoReturn:
        self._since = None
        if self._has_raised:  # the runner gives up its tasks now: the main task may never end
            self.restore()
        self._has_raised = True
        raise KeyboardInterrupt

    def restore(self, _: object = None) -> None:
        """Put the handler in place that the runner leaves behind."""
        if signal.getsignal(signal.SIGINT) is self:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def uninterrupted(func: FuncT) -> FuncT:
    """On trio, let no KeyboardInterrupt strike while *func* runs, or is awaited.

    It comes at the next checkpoint of the main task, which can be in *func*. trio has a decorator
    for that. But without importing trio, there is only this: it does not interrupt finalizers, and
    recognises them by the name of their code.
    """
    function: Any = func
    function.__code__ = function.__code__.replace(co_name="__del__")
    return func


@uninterrupted
def call_uninterrupted(func: Callable[..., object], *args: object) -> None:
    """Call *func* where trio raises no KeyboardInterrupt."""
    func(*args)
