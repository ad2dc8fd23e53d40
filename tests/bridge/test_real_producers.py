"""Real producers that block are joined, in whichever phase of theirs the stop comes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from anyio import CancelScope

from anystreamer import stream_from_thread
from anystreamer.testing import Gate, no_worker_left

from ..conftest import installed
from ..helpers.logged import logged_by_us
from ..helpers.real_producers import ENDED, NEEDS, PHASES, REAL_PRODUCERS, SLOW, Produce
from ..helpers.ways_out import (
    WayOut,
    cancelled_before_the_end,
    each_of,
    leaving,
    stopped_and_left,
)


def marks_of(produce: Produce) -> list[pytest.MarkDecorator]:
    needed = NEEDS.get(produce)
    is_missing = needed is not None and not installed(needed)
    return [
        *([pytest.mark.slow] if produce in SLOW else []),
        pytest.mark.skipif(is_missing, reason=f"{needed} is not installed"),
    ]


PRODUCERS = [pytest.param(each, id=each.__name__, marks=marks_of(each)) for each in REAL_PRODUCERS]


@pytest.fixture(autouse=True)
def tokenizers_use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")


each_producer = pytest.mark.parametrize("produce", PRODUCERS)


class Producer:
    """One of them, held in one of its phases until the stop."""

    def __init__(self, produce: Produce, phase: str | None = None) -> None:
        self.phase = phase
        self.gate = Gate()
        self.phases: list[str] = []
        self.returned = False
        self._produce = produce

    def __call__(self, emit: Any, should_stop: Any) -> None:
        def reach(phase: str) -> None:
            self.phases.append(phase)
            if phase == self.phase:
                assert not self.gate.wait(should_stop), "nobody else opens it"

        try:
            self._produce(emit, should_stop, reach, self.phase != ENDED)
        finally:
            self.returned = True


@each_producer
@each_of(leaving, stopped_and_left, cancelled_before_the_end)
async def test_it_is_joined_while_it_blocks(
    produce: Produce, way: WayOut, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer(produce)
    with no_worker_left(timeout=0), caplog.at_level(logging.WARNING, "anystreamer"):
        with CancelScope() as scope:
            async with stream_from_thread(producer) as stream:
                assert await stream.receive() == "running"
                await way(stream, scope)
        assert producer.returned
    assert producer.phases == list(PHASES)
    # watchdog logs an error of its own where it is stopped before its thread has begun.
    assert not logged_by_us(caplog)


@each_producer
@pytest.mark.parametrize("phase", PHASES)
@each_of(leaving, cancelled_before_the_end)
async def test_it_is_joined_where_the_stop_comes_earlier_or_later(
    produce: Produce, phase: str, way: WayOut
) -> None:
    """While it connects, before what blocks has begun, and after that has ended."""
    producer = Producer(produce, phase)
    with no_worker_left(timeout=0), CancelScope() as scope:
        async with stream_from_thread(producer) as stream:
            await producer.gate.reached()
            await way(stream, scope)
    assert producer.returned
