"""`ThreadCondition`: a state that a thread reaches, and that tasks can wait for. For tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from anyio import CancelScope, from_thread
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from .join import SafeEvent

__all__ = ["ThreadCondition"]


class ThreadCondition:
    """A condition that threads change and that tasks of any event loop wait for.

    It does not poll: on an event loop whose clock stands still, a sleep would never end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[SafeEvent, EventLoopToken] = {}

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until *predicate* is true. It is called in the event loop."""
        await checkpoint()
        while not predicate():
            event = SafeEvent()
            with self._lock:
                self._waiting[event] = current_token()
            # Again: it can have come true before the thread could see that a task waits.
            if predicate():
                event.set()
            try:
                await event.wait()
            finally:
                with self._lock:
                    is_notified = self._waiting.pop(event, None) is None
                if is_notified:  # a thread is on its way: the loop must not end before
                    with CancelScope(shield=True):
                        await event.wait()

    def notify(self) -> None:
        """Wake the tasks that wait, because the condition has changed. From any thread."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for event, token in waiting.items():
            with suppress(RuntimeError):  # no event loop runs in this thread
                if current_token() == token:
                    event.set()
                    continue
            with suppress(RuntimeError):  # its event loop has ended
                from_thread.run_sync(event.set, token=token)
