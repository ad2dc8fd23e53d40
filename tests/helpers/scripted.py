"""Producers that a test controls step by step, and that record what they did."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import anyio
import pytest

from anystreamer import ThreadStream
from anystreamer._streams.timeouts import Deadlines

T = TypeVar("T")
Emit = Callable[[Any], None]
ShouldStop = Callable[[], bool]

# How long a test waits for what must come, in seconds. Nothing is ever asserted about less.
PATIENCE = 30.0
# The same for a program: on a busy machine torch alone takes half a minute to import. A test that
# can wait this long has the mark `pytest.mark.timeout(PROGRAM_TIMEOUT)`.
PROGRAM_PATIENCE = 240.0
PROGRAM_TIMEOUT = 300

# For Ray to do something. On a busy machine, a cluster took 250 seconds to start.
CLUSTER_PATIENCE = 480.0
CLUSTER_TIMEOUT = 3 * CLUSTER_PATIENCE  # of a test that can start a cluster, and waits for it


class Scripted:
    """A producer of 0, 1, 2, ... that takes a step when the test allows it.

    It is shaped like a generation: a step is computed, its item is emitted, and then it asks
    whether to go on. A step that is not yet allowed is one that takes long. It cannot be
    interrupted, but it comes to its end once a stop was requested; so a test counts at most one
    more.
    """

    def __init__(
        self,
        length: float = math.inf,
        *,
        allowed: float = math.inf,
        fails: Mapping[int, BaseException] | None = None,
        asks: bool = True,
        result: object = None,
    ) -> None:
        self.length = length
        self.allowed = allowed
        self.fails = fails or {}
        self.asks = asks  # one that does not is unwound by emit()
        self.result = result
        self.steps = 0  # computed
        self.entered = False
        self.running = False
        self.unwound_by: BaseException | None = None
        self.thread: int | None = None

    def __call__(self, emit: Emit, should_stop: ShouldStop) -> object:
        assert not self.entered
        self.thread = threading.get_ident()
        self.entered = self.running = True
        try:
            for step in range(10**9):
                if step >= self.length:
                    break
                self._compute(step, should_stop)
                emit(step)
                if self.asks and should_stop():
                    break
            return self.result
        except BaseException as exc:
            self.unwound_by = exc
            raise
        finally:
            self.running = False

    def _compute(self, step: int, should_stop: ShouldStop) -> None:
        while step >= self.allowed and not (self.asks and should_stop()):
            time.sleep(0.0002)
        if step in self.fails:
            raise self.fails[step]
        self.steps += 1

    def allow(self, steps: float = math.inf) -> None:
        """Let it take *steps* more."""
        self.allowed += steps

    @property
    def has_left(self) -> bool:
        return self.entered and not self.running


class Latch:
    """A producer that emits what it is given, and is then in one long step until it is let go."""

    def __init__(self, *items: Any, then: BaseException | None = None) -> None:
        self.items = items
        self.then = then
        self.holding = threading.Event()
        self._go = threading.Event()
        self.running = False

    def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        self.running = True
        try:
            for item in self.items:
                emit(item)
            self.holding.set()
            assert self._go.wait(PATIENCE)
            if self.then is not None:
                raise self.then
        finally:
            self.running = False

    def let_go(self) -> None:
        self._go.set()


class DeadlineClock:
    """The clock that a worker thread compares the deadlines of `timeout=` with.

    A test moves it forward, so that a deadline passes at a known moment, on a busy machine too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0  # seconds
        check = Deadlines.check
        monkeypatch.setattr(
            Deadlines,
            "check",
            lambda each, now, spent: check(each, now + self._ahead, spent + self._ahead),
        )

    def pass_all(self) -> None:
        """Move it past every deadline."""
        self._ahead = 1e9


async def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait for something that a thread or a program does, which no event reports."""
    with anyio.fail_after(patience):
        while not condition():
            await anyio.sleep(0.001)  # less is nothing on uvloop, which would spin


async def rest(stream: ThreadStream[T]) -> list[T]:
    return [item async for item in stream]


class Native:
    """asyncio by its own means: what only asyncio's users can do to a stream."""

    def __init__(self, *, debug: bool = False, uvloop: bool = False) -> None:
        self.debug = debug
        self.uvloop = uvloop

    def runner(self) -> asyncio.Runner:
        if self.uvloop:
            import uvloop

            return asyncio.Runner(debug=self.debug, loop_factory=uvloop.new_event_loop)
        return asyncio.Runner(debug=self.debug)

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self.runner() as runner:
            return runner.run(main())


NATIVE_LOOPS = [
    pytest.param(Native(debug=True), id="asyncio"),
    *(
        [pytest.param(Native(uvloop=True), id="uvloop")]
        if importlib.util.find_spec("uvloop")
        else []
    ),
]
each_native_loop = pytest.mark.parametrize("native", NATIVE_LOOPS)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)
