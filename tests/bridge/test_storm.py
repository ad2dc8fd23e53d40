"""The bridge under storms: thousands of streams that end anywhere, runners that end under them, and
schedules of produce, receive, stop, cancel and fail that Hypothesis makes up.

Invariants are asserted, never timings.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import sniffio
from anyio import CancelScope, CapacityLimiter, create_task_group
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anystreamer import GenerationStopped, stream_from_thread

from ..helpers.scripted import (
    NATIVE_LOOPS,
    PATIENCE,
    Emit,
    Native,
    Scripted,
    ShouldStop,
    each_native_loop,
    until,
)
from ..helpers.ways_out import BodyError

# A few thousand streams in seconds, or in minutes on a busy machine; and what runs at night.
storms = pytest.mark.parametrize(
    "streams",
    [
        pytest.param(1500, marks=pytest.mark.timeout(300)),
        pytest.param(60_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
    ],
)
runs = pytest.mark.parametrize(
    "times",
    [60, pytest.param(3000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])],
)


class Worker(Exception):
    """What a producer raises."""


WAYS = ["end", "leave", "raise", "stop", "close", "cancel", "deadline", "task"]


class Storm:
    """Streams that end at random points, and what has to be true of each of them."""

    def __init__(self, seed: int, *, children: bool = True) -> None:
        self.rng = random.Random(seed)
        self.ways = WAYS if children else [way for way in WAYS if way != "task"]
        self.limiter: CapacityLimiter | None = None
        self.producers: list[Scripted] = []
        self.endings: dict[str, int] = {}

    def producer(self) -> Scripted:
        rng = self.rng
        length = rng.choice([0, 1, 5, 40, 200, math.inf])
        fails_at = rng.choice([None, None, 0, 3, 20])
        producer = Scripted(
            length,
            asks=rng.random() < 0.7,
            fails=None if fails_at is None else {fails_at: Worker(fails_at)},
        )
        self.producers.append(producer)
        return producer

    async def pause(self) -> None:
        for _ in range(self.rng.choice([0, 0, 1, 2, 5, 20])):
            await checkpoint()

    async def stream(self) -> None:
        """Open one and end it somehow. Nothing but a cancellation of the caller's comes out."""
        rng, producer = self.rng, self.producer()
        received: list[int] = []
        error: BaseException | None = None
        ending = "?"
        way = rng.choice(self.ways)
        count = rng.choice([0, 1, 3, 10])
        if way == "end" and producer.length == math.inf:
            way = "leave"
        try:
            with CancelScope() as scope:
                try:
                    async with stream_from_thread(
                        producer,
                        # An endless flood would only measure how fast the consumer is.
                        max_buffer_size=rng.choice(
                            [1, 2, 8] if producer.length == math.inf else [1, 2, math.inf, math.inf]
                        ),
                        limiter=rng.choice([None, None, self.limiter]),
                    ) as stream:
                        await self.pause()
                        if way == "deadline":
                            scope.deadline = anyio.current_time() + rng.random() * 0.002
                        if way == "task":
                            async with create_task_group() as tg:
                                tg.start_soon(self.disturb, stream, scope)
                                try:
                                    async for item in stream:
                                        received.append(item)
                                except anyio.ClosedResourceError:
                                    pass
                                except Worker as exc:  # the group would wrap it
                                    error = exc
                            if error is not None:
                                raise error
                        else:
                            async for item in stream:
                                received.append(item)
                                if len(received) >= count and way not in ("end", "deadline"):
                                    break
                        await self.pause()
                        if way == "raise":
                            raise BodyError
                        if way == "stop":
                            stream.stop()
                            async for item in stream:
                                received.append(item)
                            assert len(received) == producer.steps
                        elif way == "close":
                            await stream.aclose()
                            assert not producer.running
                        elif way == "cancel":
                            scope.cancel()
                            await self.pause()
                        elif way == "end":
                            assert len(received) == producer.steps
                finally:
                    assert not producer.running, "left behind"
            ending = "cancelled" if scope.cancelled_caught else way
        except (Worker, BodyError) as exc:
            error = exc
            ending = "failed"
        finally:
            assert received == list(range(len(received)))
            assert len(received) <= producer.steps
            self.endings[ending] = self.endings.get(ending, 0) + 1
        failed = isinstance(producer.unwound_by, Worker)
        if isinstance(error, BodyError):
            assert failed == bool(getattr(error, "__notes__", None))
        else:
            assert error is (producer.unwound_by if failed else None), "lost, or made up"

    async def disturb(self, stream: Any, scope: CancelScope) -> None:
        await self.pause()
        what = self.rng.choice(["stop", "thread", "close", "cancel"])
        if what == "stop":
            stream.stop()
        elif what == "thread":
            threading.Thread(target=stream.stop).start()
        elif what == "close":
            try:
                await stream.aclose()
            finally:
                scope.cancel()
        else:
            scope.cancel()

    async def streams(self, numbers: Iterator[int]) -> None:
        for _ in numbers:
            await self.stream()
            if sniffio.current_async_library() == "asyncio":
                # An error wins over a native cancellation, as everywhere; it is not lost for that.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    return

    def check(self) -> None:
        assert not [producer for producer in self.producers if producer.running]


@pytest.mark.heavy
@pytest.mark.slow
@storms
@pytest.mark.parametrize("at_once", [1, pytest.param(8, marks=pytest.mark.variant), 64])
async def test_thousands_of_streams_that_end_anywhere_are_joined_and_lose_nothing(
    streams: int, at_once: int
) -> None:
    streams = streams * 2 // 3 if at_once > 1 else streams // 5
    storm = Storm(streams + at_once)
    storm.limiter = CapacityLimiter(2)
    numbers = iter(range(streams))
    async with create_task_group() as tg:
        for _ in range(at_once):
            tg.start_soon(storm.streams, numbers)
    storm.check()
    assert len(storm.producers) == streams
    assert storm.limiter.statistics().borrowed_tokens == 0
    assert {"cancelled", "failed", "end", "stop", "close", "leave"} <= set(storm.endings)


@pytest.mark.heavy
@pytest.mark.slow
@storms
async def test_thousands_of_streams_that_one_scope_cancels_all_at_once(streams: int) -> None:
    storm = Storm(streams + 1)
    while len(storm.producers) < streams / 3:
        storm.limiter = CapacityLimiter(2)
        async with create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(storm.streams, itertools.count())
            for _ in range(storm.rng.randrange(60)):
                await checkpoint()
            tg.cancel_scope.cancel()
        storm.check()
        assert storm.limiter.statistics().borrowed_tokens == 0


@pytest.mark.heavy
@pytest.mark.slow
@each_native_loop
@storms
def test_thousands_of_streams_under_native_cancellation_of_any_task(
    native: Native, streams: int
) -> None:
    """Each task of the loop may be struck, the hosts of workers too, several at once and again."""
    storm = Storm(streams + 2, children=False)  # anyio's own are not up to it

    async def main() -> None:
        storm.limiter = CapacityLimiter(2)
        tasks: set[asyncio.Task[None]] = set()
        while len(storm.producers) < streams / 2:
            while len(tasks) < 10:
                tasks.add(asyncio.create_task(storm.stream()))
            for _ in range(storm.rng.randrange(8)):
                await asyncio.sleep(0)
            others = sorted(asyncio.all_tasks() - {asyncio.current_task()}, key=id)
            for task in storm.rng.sample(others, min(len(others), storm.rng.choice([1, 2, 50]))):
                task.cancel()
            for task in [task for task in tasks if task.done()]:
                tasks.discard(task)
                if not task.cancelled():
                    exc = task.exception()
                    # A host that was struck alone ends its stream early: that is no lost item.
                    if isinstance(exc, AssertionError) and "left behind" in str(exc):
                        raise exc
        while tasks:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.01)
            for task in [task for task in tasks if task.done()]:
                tasks.discard(task)
                if not task.cancelled():
                    task.exception()
        await until(lambda: not [p for p in storm.producers if p.running])
        assert storm.limiter.statistics().borrowed_tokens == 0

    native.run(main)
    storm.check()


@pytest.mark.heavy
@pytest.mark.slow
@each_native_loop
@runs
def test_runners_that_end_under_streams_in_any_state_join_their_threads(
    native: Native, times: int
) -> None:
    """What asyncio.run() and Runner.close() do with the tasks that are left."""
    rng = random.Random(times)
    for number in range(times):
        storm = Storm(number, children=False)

        async def main(storm: Storm = storm) -> None:
            storm.limiter = CapacityLimiter(1)
            tasks = [asyncio.create_task(storm.streams(itertools.count())) for _ in range(4)]
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                raise BodyError
            assert tasks

        if rng.random() < 0.3:
            runner = native.runner()
            with contextlib.suppress(BodyError):
                runner.run(main())
            runner.close()
        else:
            with contextlib.suppress(BodyError):
                native.run(main)
        storm.check()


BACKENDS: list[Any] = [
    ("asyncio", {"debug": True}),
    *([("asyncio", {"use_uvloop": True})] if len(NATIVE_LOOPS) > 1 else []),
    ("trio", {}),
]


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS, ids=["asyncio", "uvloop", "trio"][-len(BACKENDS) :])
@runs
def test_runs_that_are_cancelled_under_streams_in_any_state_join_their_threads(
    backend: Any, times: int
) -> None:
    name, options = backend
    rng = random.Random(times)
    for number in range(times):
        storm = Storm(number)

        async def main(storm: Storm = storm) -> None:
            storm.limiter = CapacityLimiter(1)
            async with create_task_group() as tg:
                for _ in range(4):
                    tg.start_soon(storm.streams, itertools.count())
                for _ in range(rng.randrange(40)):
                    await checkpoint()
                if rng.random() < 0.5:
                    raise BodyError
                tg.cancel_scope.cancel()

        try:
            anyio.run(main, backend=name, backend_options=options)
        except ExceptionGroup as exc:
            (error,) = exc.exceptions
            if not isinstance(error, BodyError):
                raise
        storm.check()


async def test_a_storm_of_stalls_leaves_no_item_behind_the_budget() -> None:
    """Bursts of any size, then a stall until the consumer has them all."""
    rng = random.Random(5)
    bursts = [rng.choice([1, 1, 2, 3, 5, 50]) for _ in range(400)]
    received = 0

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emitted = 0
        for burst in bursts:
            for _ in range(burst):
                emit(emitted)
                emitted += 1
            deadline = time.monotonic() + PATIENCE
            while received < emitted:
                assert time.monotonic() < deadline, "held back for ever"
                assert not should_stop()
                time.sleep(0.0001)

    async with stream_from_thread(produce) as stream:
        async for item in stream:
            assert item == received
            received += 1
            if rng.random() < 0.2:
                await checkpoint()
    assert received == sum(bursts)


# -- schedules

OPERATIONS = st.sampled_from(
    [
        *["produce"] * 3,
        *["produce three"] * 2,
        *["receive"] * 4,
        *["start to receive"] * 2,
        *["receive in a cancelled scope"] * 2,
        *["pass"] * 2,
        *["drain"] * 2,
        "stop",
        "fail",
        "return",
        "close",
        "cancel",
        "raise",
    ]
)


class Schedule:
    """A stream and its producer, led step by step; and what is known of them."""

    def __init__(self, max_buffer_size: float) -> None:
        self.producer = Scripted(allowed=0)
        self.max_buffer_size = max_buffer_size
        self.received: list[int] = []
        self.error = Worker()
        self.end_at = math.inf  # the step that returns or fails instead of emitting
        self.fails = False
        self.at_stop: int | None = None
        self.ended = False
        self.closed = False
        self.cancelled = False
        self.raised = 0  # how often the consumer got the error

    def produce(self, steps: int = 1) -> None:
        self.producer.allow(steps)

    def fail(self) -> None:
        if self.end_at == math.inf and self.at_stop is None:
            self.end_at = self.producer.allowed
            self.fails = True
            self.producer.fails = {int(self.end_at): self.error}
            self.producer.allow(1)

    def returns(self) -> None:
        if self.end_at == math.inf and self.at_stop is None:
            self.end_at = self.producer.allowed + 1
            self.producer.length = self.end_at
            self.producer.allow(1)

    @property
    def has_something(self) -> bool:
        """Whether a receive() must come back."""
        return (
            len(self.received) < min(self.producer.allowed, self.end_at)
            or self.end_at < math.inf
            or self.at_stop is not None
            or self.closed
        )

    async def receive(self, stream: Any) -> None:
        try:
            with anyio.fail_after(PATIENCE):
                self.received.append(await stream.receive())
        except anyio.EndOfStream:
            assert not self.fails or self.at_stop is not None or self.raised
            self.ended = True
        except anyio.ClosedResourceError:
            assert self.closed
        except Worker:
            self.raised += 1

    async def receive_in_a_cancelled_scope(self, stream: Any) -> None:
        with CancelScope() as scope:
            scope.cancel()
            await stream.receive()
            raise AssertionError("a cancelled receive() returned")
        assert scope.cancelled_caught

    async def follow(self, operations: list[str], outer: CancelScope) -> None:
        async with (
            stream_from_thread(self.producer, max_buffer_size=self.max_buffer_size) as stream,
            create_task_group() as tg,
        ):
            waiting: list[bool] = []

            async def wait() -> None:
                try:
                    await self.receive(stream)
                finally:
                    waiting.clear()

            def nobody_waits() -> bool:
                return not waiting

            for operation in operations:
                match operation:
                    case "produce":
                        self.produce()
                    case "produce three":
                        self.produce(3)
                    case "fail":
                        self.fail()
                    case "return":
                        self.returns()
                    case "pass":
                        await checkpoint()
                    case "receive":
                        await until(nobody_waits)
                        if self.has_something:
                            await self.receive(stream)
                    case "start to receive":
                        if not waiting and self.has_something:
                            waiting.append(True)
                            tg.start_soon(wait)
                    case "receive in a cancelled scope":
                        if not waiting:
                            await self.receive_in_a_cancelled_scope(stream)
                    case "stop":
                        stream.stop()
                        if self.at_stop is None:
                            self.at_stop = self.producer.steps
                    case "close":
                        self.closed = True
                        await stream.aclose()
                        assert not self.producer.running
                    case "cancel":
                        self.cancelled = True
                        outer.cancel()
                        await checkpoint()
                    case "raise":
                        raise BodyError
                    case "drain":
                        await until(nobody_waits)
                        while (
                            len(self.received) < min(self.producer.allowed, self.end_at)
                            and not self.ended
                            and not self.closed
                            and not self.raised
                        ):
                            await self.receive(stream)
            await until(nobody_waits)

    async def run(self, operations: list[str]) -> None:
        error: BaseException | None = None
        with CancelScope() as outer:
            try:
                await self.follow(operations, outer)
            except (Worker, ExceptionGroup) as exc:  # the body's comes out of its task group
                error = exc
            finally:
                assert not self.producer.running
        self.check(error)

    def check(self, error: BaseException | None) -> None:
        producer = self.producer
        assert self.received == list(range(len(self.received)))
        assert len(self.received) <= producer.steps
        assert producer.steps <= producer.allowed + 1
        if self.at_stop is not None:
            assert producer.steps <= self.at_stop + 1
        if self.ended and not self.closed and not self.cancelled:
            assert len(self.received) == producer.steps, "an item was lost"
        failed = producer.unwound_by is self.error
        assert failed or producer.unwound_by is None or self.stopped_by_emit
        if isinstance(error, ExceptionGroup):
            assert [type(one) for one in error.exceptions] == [BodyError], error
            notes = bool(getattr(error, "__notes__", None))
            assert notes == (failed and not self.raised)
        else:
            assert (error is not None) == (failed and not self.raised)
            assert error is None or error is self.error

    @property
    def stopped_by_emit(self) -> bool:
        return isinstance(self.producer.unwound_by, GenerationStopped)


@given(
    operations=st.lists(OPERATIONS, max_size=20),
    max_buffer_size=st.sampled_from([1, 2, math.inf]),
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_any_schedule_keeps_the_promises(
    operations: list[str], max_buffer_size: float
) -> None:
    """A prefix of what was emitted is received, in order; the thread has left; the error is the
    right one, once; at most one step after a stop.
    """
    await Schedule(max_buffer_size).run(operations)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    sizes=st.lists(st.sampled_from([1, 2, math.inf]), min_size=4, max_size=4),
    tokens=st.integers(1, 2),
    leave_after=st.integers(0, 7),
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_any_nesting_of_streams_on_one_limiter_comes_to_its_end(
    lengths: list[int], sizes: list[float], tokens: int, leave_after: int
) -> None:
    limiter = CapacityLimiter(tokens)
    producers = [Scripted(length) for length in lengths]

    async def nest(depth: int) -> None:
        if depth == len(lengths):
            return
        async with stream_from_thread(
            producers[depth], max_buffer_size=sizes[depth], limiter=limiter
        ) as stream:
            if lengths[depth]:
                assert await stream.receive() == 0
            await nest(depth + 1)
            received = [0] if lengths[depth] else []
            async for item in stream:
                received.append(item)
                if len(received) > leave_after:
                    return
            assert received == list(range(lengths[depth]))

    with anyio.fail_after(PATIENCE):
        await nest(0)
    assert limiter.statistics().borrowed_tokens == 0
    assert all(producer.has_left for producer in producers)
