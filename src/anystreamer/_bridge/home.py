"""Where a stream lives: in one event loop of one process. Elsewhere it cannot be waited for."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from anyio.lowlevel import current_token

__all__ = ["Home", "call_after_fork"]

# Stands for this process. Compared in place of its id, which would take a system call.
_process = object()


def call_after_fork(func: Callable[[], object]) -> None:
    """Have a forked child call *func* first: it has none of the threads of its parent."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=func)


def _begin_process() -> None:
    global _process
    _process = object()


call_after_fork(_begin_process)


class Home:
    """The event loop and the process that something was opened in. Made on the loop.

    Args:
        name: of what was opened, for messages.
        advice: for those who use it in another event loop.
    """

    def __init__(self, name: str, advice: str) -> None:
        token = current_token()
        # The native token: comparing it takes a tenth of the time, and each receive() does.
        self._current_loop = token.backend_class.current_token
        # `anyio.lowlevel.checkpoint` without its search for the backend, for the same reason.
        self.checkpoint: Callable[[], Awaitable[None]] = token.backend_class.checkpoint
        self._loop = token.native_token
        self._process = _process
        self._name = name
        self._advice = advice

    @property
    def is_in_parent(self) -> bool:
        """Whether this process was forked from its own. Then none of its threads is here."""
        return self._process is not _process

    def check(self) -> None:
        """Raises RuntimeError in another event loop, without one, and in a forked child."""
        try:
            if self._current_loop() is self._loop and self._process is _process:
                return
        except RecursionError:  # a RuntimeError, too
            raise
        except RuntimeError:  # no event loop of this kind runs here
            pass
        self.check_process()
        raise RuntimeError(f"this {self._name} belongs to another event loop; {self._advice}")

    def check_process(self) -> None:
        """Raises RuntimeError in a forked child."""
        if self.is_in_parent:
            raise RuntimeError(
                f"this {self._name} was opened in the process that this one was forked from; "
                "open another one here"
            )
