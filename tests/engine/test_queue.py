"""How many requests an engine's queue lets run, and how long a refused one should wait."""

from __future__ import annotations

import math
from typing import Any

import pytest
from anyio import create_task_group

from anystreamer import EngineBusy, open_engine
from anystreamer._engine.metrics import EngineMetrics
from anystreamer._streams import Timing
from anystreamer._workers.queue import AdmissionQueue


def tickets(queue: AdmissionQueue, *costs: int) -> None:
    for cost in costs:
        queue.enqueue().cost = cost


@pytest.mark.parametrize(
    ("max_running", "capacity", "costs", "slots"),
    [
        (64, 1000, (), 64),  # nothing runs yet
        (64, 1000, (0, 0), 64),  # their prompts are not encoded yet
        (64, 1000, (10, 30), 50),  # the cache takes fewer
        (64, 1000, (10, 0, 30), 50),
        (4, 1000, (10, 30), 4),
        (4, 10, (100,), 1),
    ],
)
def test_slots_are_those_that_there_are(
    max_running: int, capacity: int, costs: tuple[int, ...], slots: float
) -> None:
    queue = AdmissionQueue(max_running, capacity)
    tickets(queue, *costs)
    assert queue.slots == slots


def test_the_wait_of_a_burst_is_shared_by_all_slots() -> None:
    metrics = EngineMetrics()
    metrics.on_end(Timing(queued=0.0, first_token=0.1, total=0.5))
    queue = AdmissionQueue(64)
    tickets(queue, *[1] * 127)
    assert not queue.running
    assert metrics.estimated_wait(127, queue.slots) == pytest.approx(1.0)


@pytest.mark.torch
async def test_a_refusal_in_a_burst_counts_all_slots() -> None:
    from anystreamer.demo import load_demo

    model, tokenizer = load_demo()
    refused: list[float] = []
    options: dict[str, Any] = {"batching": "continuous", "max_running": 8, "max_waiting": 8}
    async with open_engine(model, tokenizer, **options) as engine:

        async def ask() -> None:
            try:
                async with engine.stream_text("one,", max_new_tokens=8) as stream:
                    await stream.read()
            except EngineBusy as busy:
                refused.append(busy.retry_after or math.inf)

        async with engine.stream_text("one,", max_new_tokens=8) as stream:
            await stream.read()
        assert stream.timing is not None
        assert stream.timing.queued is not None
        turn = stream.timing.total - stream.timing.queued
        async with create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
    # All of them come before one has ended, and at most 16 wait.
    assert len(refused) == 34
    assert max(refused) <= turn * 17 / 8 * 1.001
