"""The only functions of the tests that read or change private state of the library."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

from anystreamer import sync
from anystreamer._bridge import StreamState, ThreadEvent, delivery
from anystreamer._bridge.producer import Producer
from anystreamer._bridge.thread_call import ThreadCall
from anystreamer._engine import cb_passes
from anystreamer._engine.turns import Turns
from anystreamer.testing import Gate

from .scripted import until

__all__ = [
    "CROSSING",
    "WAITING_FOR_SPACE",
    "Deliveries",
    "LoopDeliveries",
    "WakeUps",
    "async_stream_of",
    "decoder_of",
    "held",
    "hold_back",
    "is_idle",
    "is_receiving",
    "open_states",
    "pieces_of",
    "share_pieces",
    "stands_before",
    "stands_in",
    "start_portal",
    "state_of",
    "threads_before_a_pass",
    "waiting_for",
    "waits_for_a_call",
    "wake_drain",
    "worker_left",
]

# Code on a worker thread's stack while its producer waits for space in the buffer, and while it
# delivers items to the loop.
WAITING_FOR_SPACE = Producer._wait_for_space.__code__
CROSSING = delivery.Crossing.flush.__code__


# -- streams


def state_of(stream: Any) -> Any:
    """The state of a stream: `StreamState`, or `GenerationState` of text."""
    return stream._state


def worker_left(stream: Any) -> bool:
    """Whether the stream's worker has left its producer, or will never enter it."""
    return bool(state_of(stream).worker_exited.is_set())


async def held(stream: Any, times: int = 3) -> None:
    """Wait until the producer has looked at its full buffer this many times more, and waits."""
    space: Any = state_of(stream).space_available
    usual_wait, waits = space.wait, 0

    def wait(timeout: float) -> None:
        nonlocal waits
        waits += 1
        usual_wait(timeout)

    space.wait = wait
    try:
        await until(lambda: waits >= times)
    finally:
        del space.wait


def stands_in(code: CodeType, thread: int | None) -> bool:
    """Whether a thread is in a function, by the function's code."""
    frame = None if thread is None else sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def waits_for_a_call(thread: int | None) -> bool:
    """Whether a thread waits for what it has called in an event loop, without one of its own."""
    return stands_in(ThreadCall._start_and_wait.__code__, thread)


class WakeUps:
    """Counts how often the loop wakes a thread that waits for space in a buffer.

    It counts one more if the buffer was half full, and then not full, before the first wait.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.waits: list[float] = []  # how long the thread was going to wait at most
        usual_set, usual_wait = ThreadEvent.set, ThreadEvent.wait
        loop_thread = threading.get_ident()

        def counted(event: ThreadEvent) -> None:
            is_waited_for = event._lock.locked()
            self.count += is_waited_for and threading.get_ident() == loop_thread
            usual_set(event)

        def noted(event: ThreadEvent, seconds: float = -1) -> None:
            self.waits.append(seconds)
            usual_wait(event, seconds)

        monkeypatch.setattr(ThreadEvent, "set", counted)
        monkeypatch.setattr(ThreadEvent, "wait", noted)


def is_receiving(stream: Any) -> bool:
    """Whether a task is in `receive`."""
    return bool(stream._receiving)


def async_stream_of(stream: Any) -> Any:
    """The stream behind one of `anystreamer.sync`."""
    return stream._stream


def decoder_of(row_detokenizer: Any) -> Any:
    """What decodes the ids of a row."""
    return row_detokenizer._decoder


class Deliveries:
    """Counts how often any stream looks for items to deliver. A test can act around that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._action: Callable[[], object] = lambda: None
        publish = StreamState.publish

        def observed(state: Any) -> Any:
            self.count += 1
            if self.count % 3 == 0:
                self._action()
            result = publish(state)
            if self.count % 3 == 1:
                self._action()
            return result

        monkeypatch.setattr(StreamState, "publish", observed)

    def act_around(self, action: Callable[[], object]) -> None:
        """Act right before every third delivery, and right after the one that follows it."""
        self._action = action


def hold_back(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Hold items back for this long, after the first one, while no receive() waits."""
    monkeypatch.setattr(delivery, "CROSSING_SHARE", 1e-9)
    for name in ("CROSSING_CAP", "MAX_DELAY", "TIMER_MARGIN"):
        monkeypatch.setattr(delivery, name, seconds)


class LoopDeliveries:
    """Counts the deliveries of the running event loop, and changes their budget."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.after_next: Callable[[], object] = lambda: None  # before its thread goes on
        self._delivery = delivery.LoopDelivery.of_this_loop()
        publish = delivery.LoopDelivery.publish

        def counted(loop_delivery: Any, **kwargs: Any) -> None:
            self.count += 1
            publish(loop_delivery, **kwargs)
            action, self.after_next = self.after_next, lambda: None
            action()

        monkeypatch.setattr(delivery.LoopDelivery, "publish", counted)

    @property
    def timer_is_set(self) -> bool:
        """Whether the loop is going to deliver by itself."""
        return self._delivery._timer_is_set

    def end_delay(self) -> None:
        """Allow for a crossing now."""
        self._delivery._delay_until = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no stream waits for a delivery, or could look for one."""
        return not (self._delivery._waiting or self._delivery._timers)


def start_portal() -> None:
    """Start the loop of `anystreamer.sync`, which stays for the life of the process."""
    sync._portal.portal.tasks()


# -- engines


def open_states(engine: Any) -> list[Any]:
    """The states of all requests that an engine has."""
    return [task.state for task in engine.tasks]


def is_idle(engine: Any) -> bool:
    """Whether an engine has no request."""
    return not len(engine.tasks)


def threads_before_a_pass(model: Any) -> int:
    """How many threads wait to make a forward pass of a model that an engine batches."""
    return waiting_for(cb_passes._turns[model])


def waiting_for(turns: Turns) -> int:
    """How many threads wait for their turn."""
    return max(len(turns._waiters) - 1, 0)  # the first one has it


def wake_drain(engine: Any) -> None:
    """Make an engine with continuous batching look at its requests."""
    engine._has_work.set()


# -- scripted models


def pieces_of(tokenizer: Any) -> list[str]:
    """The pieces of a scripted model, as its tokenizer knows them."""
    pieces: list[str] = tokenizer._pieces
    return pieces


def share_pieces(tokenizer: Any, pieces: list[str]) -> None:
    """Make a scripted tokenizer decode these pieces."""
    tokenizer._pieces = pieces


def stands_before(gate: Gate) -> bool:
    """Whether a model has come to the gate."""
    return gate._reached.is_set()
