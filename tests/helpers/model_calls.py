"""What a model does while a test watches it: its calls, and a gate to halt it at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from anyio import Event, fail_after, from_thread, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint


class Calls:
    """The calls of `generate()`: how many are in it, and the order in which they came."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered: list[Any] = []
        self._lock = threading.Lock()

    def around(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(**kwargs: Any) -> Any:
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.entered.append(kwargs.pop("call", None))
            try:
                return generate(**kwargs)
            finally:
                with self._lock:
                    self.inside -= 1

        return wrapper


class Gate:
    """A forward pass in which the model waits until a test lets it go on."""

    def __init__(self) -> None:
        self._reached = Event()
        self._open = threading.Event()

    def __call__(self) -> None:
        from_thread.run_sync(self._reached.set)
        assert self._open.wait(30), "the gate was not opened"

    async def reached(self) -> None:
        """Wait until the model is there."""
        with fail_after(30):
            await self._reached.wait()

    def open(self) -> None:
        self._open.set()

    async def open_when_blocked(self) -> None:
        """Open it when every task has come to where it waits for the model."""
        try:
            # On asyncio, tasks also look blocked while a callback that will wake one is scheduled.
            for _ in range(5):
                await wait_all_tasks_blocked()
                await checkpoint()
        finally:
            self.open()
