"""The bridge's promises, each with a scripted producer: no model, no torch.

In the order of the promises: the join and the stop, queued work, errors, nothing hangs, bounds,
checkpoints; then the producer's thread, iterables, what is refused, and what is prepared.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import math
import random
import signal
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import anyio
import pytest
import sniffio
from anyio import CancelScope, CapacityLimiter, create_task_group, from_thread
from anyio.lowlevel import checkpoint

from anystreamer import GenerationStopped, ThreadStream, stream_from_thread, stream_iterable
from anystreamer._bridge import (
    StreamContext,
    StreamState,
    ThreadContext,
    ThreadTask,
    run_sync_joined,
)

from ..helpers.inside import state_of
from ..helpers.scripted import (
    NATIVE_LOOPS,
    PATIENCE,
    Emit,
    Latch,
    Native,
    Scripted,
    ShouldStop,
    rest,
    until,
)

each_native_loop = pytest.mark.parametrize("native", NATIVE_LOOPS)


@pytest.fixture(autouse=True)
def asyncio_complains_of_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No "Task exception was never retrieved", no "Task was destroyed but it is pending"."""
    yield
    gc.collect(1)  # conftest.py does the rest
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    errors = [r.getMessage() for r in records if r.name == "asyncio" and r.levelname == "ERROR"]
    assert not errors


class Body(Exception):
    """What the body of a block raises."""


# -- 1 and 2: the join and the stop

Stream: TypeAlias = ThreadStream[int]
Way: TypeAlias = Callable[[Stream, Scripted, CancelScope], Awaitable[None]]


async def reaching_the_end(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    producer.length = producer.steps  # and the step in progress, if there is one
    producer.allow()
    await rest(stream)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


async def leaving(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    pass


async def breaking(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    producer.length = producer.steps + 1
    producer.allow()
    async for _ in stream:
        break


async def raising(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    raise Body


async def raising_in_a_child_task(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # theirs
        async with create_task_group() as tg:
            tg.start_soon(raising, stream, producer, outer)
            await rest(stream)
    assert isinstance(caught.value.exceptions[0], Body)
    raise Body


async def cancelled_from_outside(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    async with create_task_group() as tg:
        tg.start_soon(rest, stream)
        await checkpoint()
        outer.cancel()
    await rest(stream)
    raise AssertionError("cancelled, and not told")


async def cancelled_before_the_end(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    outer.cancel()


async def deadline_expired(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    outer.deadline = anyio.current_time()
    await rest(stream)
    raise AssertionError("expired, and not told")


async def stopped(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    stream.stop()
    stream.stop()
    await rest(stream)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


async def stopped_and_left(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    stream.stop()


async def closed(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    await stream.aclose()
    assert not producer.running
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    await stream.aclose()


async def closed_by_its_own_block(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
    async with stream:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


async def closed_under_a_waiting_receive(
    stream: Stream, producer: Scripted, outer: CancelScope
) -> None:
    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await rest(stream)

    async with create_task_group() as tg:
        tg.start_soon(wait)
        await checkpoint()
        await stream.aclose()


async def closed_in_a_cancelled_scope(
    stream: Stream, producer: Scripted, outer: CancelScope
) -> None:
    outer.cancel()
    await stream.aclose()


WAYS_OUT = [
    leaving,
    raising,
    raising_in_a_child_task,
    cancelled_from_outside,
    cancelled_before_the_end,
    deadline_expired,
    stopped,
    stopped_and_left,
    closed,
    closed_by_its_own_block,
    closed_under_a_waiting_receive,
    closed_in_a_cancelled_scope,
]
each_way_out = pytest.mark.parametrize("way", WAYS_OUT, ids=lambda way: way.__name__)


async def go(
    way: Way, producer: Scripted, outer: CancelScope, *, receive: int = 0, **arguments: Any
) -> bool:
    """Open a stream, leave it by *way*, and tell whether its producer had left by then."""
    with outer:
        try:
            async with stream_from_thread(producer, **arguments) as stream:
                for expected in range(receive):
                    assert await stream.receive() == expected
                await way(stream, producer, outer)
        except Body:
            pass
        finally:
            joined = not producer.running
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    return joined


@pytest.mark.parametrize(
    "way",
    [*WAYS_OUT, reaching_the_end, breaking],
    ids=lambda way: way.__name__,
)
@pytest.mark.parametrize("receive", [0, 3])
async def test_when_the_block_is_left_the_producer_is_and_at_most_one_more_step_was_taken(
    way: Way, receive: int
) -> None:
    """The fourth step takes until something stops it."""
    producer = Scripted(allowed=3)
    assert await go(way, producer, CancelScope(), receive=receive)
    assert producer.has_left or not producer.entered
    assert producer.steps <= 4


@each_way_out
async def test_a_producer_that_never_asks_is_unwound_by_emit(way: Way) -> None:
    producer = Scripted(asks=False)
    assert await go(way, producer, CancelScope(), receive=1)
    assert producer.has_left
    assert isinstance(producer.unwound_by, GenerationStopped)


@each_way_out
async def test_a_producer_that_is_held_by_its_full_buffer_leaves_too(way: Way) -> None:
    producer = Scripted()

    async def held(stream: Stream, producer: Scripted, outer: CancelScope) -> None:
        await until(lambda: producer.steps == 2)
        await way(stream, producer, outer)

    assert await go(held, producer, CancelScope(), max_buffer_size=2)
    assert producer.has_left
    # stop() does not drop what waits; so a consumer that goes on makes room for as many.
    assert producer.steps <= 3


async def test_a_step_in_progress_is_waited_for() -> None:
    latch = Latch("item")
    events = []

    async def watch() -> None:
        await until(latch.holding.is_set)
        await anyio.wait_all_tasks_blocked()
        events.append(("still running", latch.running))
        latch.let_go()

    async with create_task_group() as tg:
        tg.start_soon(watch)
        async with stream_from_thread(latch) as stream:
            assert await stream.receive() == "item"
            await until(latch.holding.is_set)
        events.append(("still running", latch.running))
    assert events == [("still running", True), ("still running", False)]


async def test_a_cancellation_while_the_step_is_waited_for_does_not_cut_the_wait() -> None:
    latch = Latch("item")
    with CancelScope() as outer:

        async def cancel() -> None:
            await until(latch.holding.is_set)
            await anyio.wait_all_tasks_blocked()
            outer.cancel()
            with CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                assert latch.running
                latch.let_go()

        async with create_task_group() as tg:
            tg.start_soon(cancel)
            try:
                async with stream_from_thread(latch) as stream:
                    await stream.receive()
                    await until(latch.holding.is_set)
            finally:
                assert not latch.running
            await checkpoint()  # the end of a trio nursery is none
    assert outer.cancelled_caught


async def test_stop_keeps_all_that_was_made() -> None:
    producer = Scripted(allowed=5)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.steps == 5)
        stream.stop()
        at_stop = producer.steps
        items = await rest(stream)
    assert items == list(range(producer.steps))
    assert producer.steps <= at_stop + 1


async def test_a_producer_that_catches_what_emit_raises_can_clean_up_and_return() -> None:
    cleaned_up = []

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        try:
            for item in range(10**9):
                emit(item)
        except GenerationStopped:
            assert should_stop()
            cleaned_up.append(threading.get_ident())

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == 0
    assert cleaned_up
    assert cleaned_up != [threading.get_ident()]


async def test_stop_is_safe_from_a_thread() -> None:
    producer = Scripted(allowed=2)
    async with stream_from_thread(producer) as stream:
        assert [await stream.receive(), await stream.receive()] == [0, 1]
        thread = threading.Thread(target=stream.stop)
        thread.start()
        assert await rest(stream) in ([], [2])
        thread.join()
    assert producer.has_left


async def test_stop_is_safe_in_a_signal_handler() -> None:
    producer = Scripted(allowed=2)
    async with stream_from_thread(producer) as stream:
        handler = signal.signal(signal.SIGTERM, lambda *_: stream.stop())
        try:
            assert [await stream.receive(), await stream.receive()] == [0, 1]
            signal.raise_signal(signal.SIGTERM)
            assert await rest(stream) in ([], [2])
        finally:
            signal.signal(signal.SIGTERM, handler)
    assert producer.has_left


class Silent:
    """A producer that takes steps and has nothing to say: nothing but a question reaches it."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        while not should_stop():
            time.sleep(0.001)
            self.steps += 1


async def test_a_cancelled_scope_is_seen_while_the_loop_is_blocked() -> None:
    producer = Silent()
    with CancelScope() as scope:
        async with stream_from_thread(producer):
            await until(lambda: producer.steps)
            scope.cancel()
            at_cancel = producer.steps
            time.sleep(0.1)
            after = producer.steps
    assert after <= at_cancel + 1
    assert producer.steps <= at_cancel + 1


async def test_stop_is_seen_while_the_loop_is_blocked() -> None:
    producer = Silent()
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.steps)
        stream.stop()
        at_stop = producer.steps
        time.sleep(0.1)
        assert producer.steps <= at_stop + 1


async def test_a_cancelled_scope_is_seen_behind_a_shielded_consumer() -> None:
    """The consumer goes on, and comes to the end. What was made before is its own."""
    producer = Scripted(allowed=3)
    with CancelScope() as outer:
        async with stream_from_thread(producer) as stream:
            await until(lambda: producer.steps == 3)
            with CancelScope(shield=True):
                outer.cancel()
                items = await rest(stream)
                assert producer.has_left
        await checkpoint()  # the end of a trio nursery is none
    assert outer.cancelled_caught
    assert items == [0, 1, 2]
    assert producer.steps <= 4


async def test_a_shield_around_the_block_protects_its_producer() -> None:
    with CancelScope() as outer, CancelScope(shield=True):
        outer.cancel()
        async with stream_from_thread(Scripted(5)) as stream:
            assert await rest(stream) == [0, 1, 2, 3, 4]


async def test_a_scope_inside_the_block_ends_a_receive_and_not_the_producer() -> None:
    producer = Scripted(3, allowed=0)
    async with stream_from_thread(producer) as stream:
        with CancelScope() as inner:
            inner.cancel()
            await stream.receive()
        assert inner.cancelled_caught
        with anyio.move_on_after(0.01):
            await stream.receive()
        producer.allow()
        assert await rest(stream) == [0, 1, 2]


async def test_a_block_entered_in_a_cancelled_scope_starts_nothing() -> None:
    producer = Scripted()
    with CancelScope() as scope:
        scope.cancel()
        async with stream_from_thread(producer) as stream:
            await stream.receive()
    assert not producer.entered


# -- 1 and 2, by asyncio's own means


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@each_native_loop
def test_native_cancellation_of_the_consumer_joins_the_producer(native: Native) -> None:
    producer = Scripted(allowed=3)
    joined = []

    async def consume() -> None:
        try:
            async with stream_from_thread(producer) as stream:
                await rest(stream)
        finally:
            joined.append(producer.has_left)

    async def main() -> None:
        task = asyncio.create_task(consume())
        await until(lambda: producer.steps == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    native.run(main)
    assert joined == [True]
    assert producer.steps <= 4


@each_native_loop
@pytest.mark.parametrize("times", [1, 2, 30])
def test_native_cancellation_of_every_task_joins_the_producer(native: Native, times: int) -> None:
    """Also of the worker's own host task, and again while the producer is waited for."""
    latch = Latch("item")
    joined = []

    async def consume() -> None:
        try:
            async with stream_from_thread(latch) as stream:
                await rest(stream)
        finally:
            joined.append(not latch.running)

    async def main() -> None:
        task = asyncio.create_task(consume())
        await until(latch.holding.is_set)
        for _ in range(times):
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await settle()
            assert latch.running
            assert not joined
        latch.let_go()
        with pytest.raises(asyncio.CancelledError):
            await task

    native.run(main)
    assert joined == [True]


@each_native_loop
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_native_cancellation_of_every_task_at_each_step_of_the_loop(
    native: Native, again: bool
) -> None:
    """Wherever the tasks are: entering, starting the thread, receiving, leaving."""

    async def consume(producer: Scripted, joined: list[bool]) -> None:
        try:
            async with stream_from_thread(producer) as stream:
                for _ in range(3):
                    await stream.receive()
        finally:
            joined.append(not producer.running)

    async def main(turns: int, producer: Scripted, joined: list[bool]) -> None:
        task = asyncio.create_task(consume(producer, joined))
        for _ in range(turns):
            await asyncio.sleep(0)
        while not task.done():
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await asyncio.sleep(0)
            if not again:
                break
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done(), "waits for ever"
        assert task.cancelled() or task.exception() is None

    for turns in range(40):
        producer, joined = Scripted(), list[bool]()
        native.run(functools.partial(main, turns, producer, joined))
        assert joined in ([], [True])  # []: cancelled before its first step
        assert not producer.running


@each_native_loop
def test_native_cancellation_while_queued_starts_nothing(native: Native) -> None:
    producer = Scripted()

    async def consume(limiter: CapacityLimiter) -> None:
        async with stream_from_thread(producer, limiter=limiter) as stream:
            await rest(stream)

    async def main() -> None:
        limiter = CapacityLimiter(1)
        async with limiter:
            task = asyncio.create_task(consume(limiter))
            while not limiter.statistics().tasks_waiting:
                await asyncio.sleep(0)
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert limiter.statistics().borrowed_tokens == 0
        assert limiter.statistics().tasks_waiting == 0

    native.run(main)
    assert not producer.entered


@each_native_loop
def test_asyncio_timeout_joins_the_producer(native: Native) -> None:
    producer = Scripted(allowed=1)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                try:
                    async with stream_from_thread(producer) as stream:
                        await rest(stream)
                finally:
                    assert not producer.running
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    native.run(main)
    assert producer.steps <= 2


@each_native_loop
def test_a_native_cancellation_is_never_swallowed(native: Native) -> None:
    """Also when it comes in the moment in which a waiting receive() looks after its producer."""

    async def main() -> None:
        latch = Latch("item")
        rng = random.Random(1)
        async with stream_from_thread(latch) as stream:
            assert await stream.receive() == "item"
            for _ in range(300):
                task = asyncio.create_task(stream.receive())
                await asyncio.sleep(rng.choice([0, 0.0035, 0.004, 0.0045]) * rng.random())
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, PATIENCE)
            latch.let_go()

    native.run(main)


@each_native_loop
@pytest.mark.parametrize("stage", ["running", "queued", "held", "ended"])
def test_a_runner_that_ends_under_an_open_stream_joins_its_producer(
    native: Native, stage: str
) -> None:
    """asyncio.run() and Runner.close() cancel what is left, and wait for it."""
    producer = Scripted(3 if stage == "ended" else math.inf)
    blocker = Scripted(allowed=0)
    joined = []

    async def consume(ready: asyncio.Event, limiter: CapacityLimiter) -> None:
        try:
            async with stream_from_thread(producer, limiter=limiter, max_buffer_size=4) as stream:
                if stage == "running":
                    await stream.receive()
                elif stage == "queued":
                    pass
                else:
                    await until(lambda: producer.steps == (4 if stage == "held" else 3))
                ready.set()
                await asyncio.sleep(3600)
        finally:
            joined.append(not producer.running)

    async def block(limiter: CapacityLimiter) -> None:
        async with stream_from_thread(blocker, limiter=limiter) as stream:
            await rest(stream)

    tasks = []

    async def main() -> None:
        limiter, ready = CapacityLimiter(1), asyncio.Event()
        if stage == "queued":
            tasks.append(asyncio.create_task(block(limiter)))
            await until(lambda: blocker.entered)
        tasks.append(asyncio.create_task(consume(ready, limiter)))
        await ready.wait()

    native.run(main)
    assert joined == [True]
    assert all(task.cancelled() for task in tasks)
    assert not blocker.running
    assert producer.entered is (stage != "queued")


@each_native_loop
def test_streams_of_several_runs_of_one_runner_are_independent(native: Native) -> None:
    """Runner.run() again on the same loop: worker threads of the first run are gone by then."""

    async def main() -> list[int]:
        async with stream_from_thread(Scripted(3)) as stream:
            return await rest(stream)

    with native.runner() as runner:
        assert [runner.run(main()) for _ in range(3)] == [[0, 1, 2]] * 3


# -- 3: queued work never runs


@each_way_out
async def test_work_that_is_left_before_its_turn_never_runs(way: Way) -> None:
    limiter = CapacityLimiter(1)
    holder, producer = Scripted(allowed=0), Scripted()
    async with stream_from_thread(holder, limiter=limiter):
        await until(lambda: holder.entered)
        assert await go(way, producer, CancelScope(), limiter=limiter)
        assert holder.running
        assert limiter.statistics().tasks_waiting == 0
    assert not producer.entered
    assert limiter.statistics().borrowed_tokens == 0


async def test_stop_of_queued_work_wakes_a_receive_that_was_waiting_already() -> None:
    limiter = CapacityLimiter(1)
    producer = Scripted()
    async with limiter, stream_from_thread(producer, limiter=limiter) as stream:
        async with create_task_group() as tg:

            async def wait() -> None:
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

            tg.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            threading.Thread(target=stream.stop).start()
    assert not producer.entered


async def test_work_that_was_stopped_while_queued_passes_its_turn_on() -> None:
    limiter = CapacityLimiter(1)
    first, second = Scripted(2), Scripted(2)
    async with limiter:
        async with (
            stream_from_thread(first, limiter=limiter) as stopped_one,
            stream_from_thread(second, limiter=limiter) as other,
        ):
            stopped_one.stop()  # and nobody receives from it
            limiter.release()
            assert await rest(other) == [0, 1]
            assert await rest(stopped_one) == []
            await limiter.acquire()
    assert not first.entered


async def test_turns_are_given_first_come_first_served() -> None:
    limiter = CapacityLimiter(1)
    order = []

    def produce(number: int, emit: Emit, should_stop: ShouldStop) -> None:
        order.append(number)
        emit(number)

    async def consume(number: int) -> None:
        produced = functools.partial(produce, number)
        async with stream_from_thread(produced, limiter=limiter) as stream:
            if number == 2:
                return  # while it is queued
            assert await rest(stream) == [number]

    async with create_task_group() as tg:
        async with limiter:
            for number in range(5):
                tg.start_soon(consume, number)
                await anyio.wait_all_tasks_blocked()
    assert order == [0, 1, 3, 4]


async def test_the_turn_is_held_until_the_producer_has_left() -> None:
    limiter = CapacityLimiter(1)
    latch = Latch("item")
    seen = []

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        seen.append(latch.running)

    async def next_one() -> None:
        async with stream_from_thread(produce, limiter=limiter) as stream:
            await rest(stream)

    async with create_task_group() as tg:
        async with stream_from_thread(latch, limiter=limiter) as stream:
            await until(latch.holding.is_set)
            tg.start_soon(next_one)
            await until(lambda: limiter.statistics().tasks_waiting)
            stream.stop()
            await checkpoint()
            assert not seen
            latch.let_go()
    assert seen == [False]


async def test_streams_without_a_limiter_never_wait_for_anyios_shared_threads() -> None:
    shared = anyio.to_thread.current_default_thread_limiter()
    before = shared.total_tokens
    shared.total_tokens = 1
    try:
        async with shared:
            async with (
                stream_from_thread(Scripted(2)) as one,
                stream_from_thread(Scripted(2)) as two,
            ):
                assert await rest(one) + await rest(two) == [0, 1, 0, 1]
    finally:
        shared.total_tokens = before


# -- 4: errors arrive


class Fatal(BaseException):
    pass


class Falsy(Exception):
    """Sizeable, and empty: false where its truth is asked for."""

    def __len__(self) -> int:
        return 0


class Unequal(Exception):
    """Cannot be compared, and has no repr."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]


ERRORS = {
    "Exception": lambda: ValueError("wrong"),
    "TimeoutError": TimeoutError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "BaseException": Fatal,
    "ExceptionGroup": lambda: ExceptionGroup("theirs", [ValueError(), TypeError()]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup(
        "theirs", [Fatal(), ExceptionGroup("", [OSError()])]
    ),
    "ClosedResourceError": anyio.ClosedResourceError,
    "BusyResourceError": lambda: anyio.BusyResourceError("theirs"),
    "WouldBlock": anyio.WouldBlock,
    "RuntimeError": lambda: RuntimeError("theirs"),
    "GenerationStopped": GenerationStopped,
    "falsy": Falsy,
    "unequal": Unequal,
}
each_error = pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)


def raised(exc: BaseException) -> BaseException:
    """Give *exc* a cause, a context and a traceback, as an error has that was handled before."""
    try:
        try:
            raise KeyError("context")
        except KeyError:
            raise exc from LookupError("cause")
    except BaseException as same:
        return same


def is_untouched(exc: BaseException) -> bool:
    return (
        isinstance(exc.__cause__, LookupError)
        and isinstance(exc.__context__, KeyError)
        and exc.__suppress_context__
        and not hasattr(exc, "__notes__")
    )


@each_error
@pytest.mark.parametrize("position", [0, 3])
async def test_what_the_producer_raises_is_raised_by_receive_after_what_came_before(
    make: Callable[[], BaseException], position: int
) -> None:
    """The very same object, bare, untouched."""
    error = raised(make())
    received: list[Any] = []
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with stream_from_thread(Scripted(fails={position: error})) as stream:
            async for item in stream:
                received.append(item)
    assert caught.value is error
    assert is_untouched(error)
    assert received == list(range(position))


@each_error
async def test_an_error_that_nobody_received_is_raised_at_the_end_of_the_block(
    make: Callable[[], BaseException],
) -> None:
    error = raised(make())
    producer = Scripted(fails={2: error})
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with stream_from_thread(producer):
            await until(lambda: producer.has_left)
    assert caught.value is error
    assert is_untouched(error)


@pytest.mark.parametrize(
    "make",
    # GenerationStopped is the normal end of a stopped producer.
    [make for make in ERRORS.values() if make is not GenerationStopped],
    ids=[name for name in ERRORS if name != "GenerationStopped"],
)
async def test_an_error_and_a_cancelled_scope_together_the_error_wins(
    make: Callable[[], BaseException],
) -> None:
    """It comes from the very step in which the scope is cancelled, by the thread itself."""
    error = raised(make())

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(0)
        from_thread.run_sync(scope.cancel)
        raise error

    with CancelScope() as scope:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            async with stream_from_thread(produce) as stream:
                await rest(stream)
                await anyio.sleep_forever()
    assert caught.value is error
    assert isinstance(error.__cause__, LookupError)  # the context is up to CPython here


async def test_an_error_received_while_another_is_handled_keeps_its_own_context() -> None:
    error = raised(ValueError())
    async with stream_from_thread(Scripted(fails={0: error})) as stream:
        try:
            raise OSError
        except OSError:
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
    assert is_untouched(error)


async def test_an_error_wins_at_the_end_of_a_block_that_is_left_by_cancellation() -> None:
    error = raised(ValueError())
    producer = Scripted(fails={0: error})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        with CancelScope() as scope:
            async with stream_from_thread(producer):
                await until(lambda: producer.has_left)
                scope.cancel()
                await anyio.sleep_forever()
    assert caught.value is error
    assert isinstance(error.__cause__, LookupError)  # the context is up to CPython here


async def a_cancellation() -> BaseException:
    """Catch one that belongs to another scope."""
    with CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            foreign = exc
            raise
    return foreign


@pytest.mark.parametrize(
    "make", [StopIteration, StopAsyncIteration, GeneratorExit, anyio.EndOfStream, None]
)
@pytest.mark.parametrize("reading", [True, False])
async def test_what_would_be_mistaken_for_an_end_or_a_cancellation_is_wrapped(
    make: Callable[[], BaseException] | None, reading: bool
) -> None:
    error = make() if make else await a_cancellation()
    producer = Scripted(fails={1: error})
    received: list[Any] = []
    with pytest.raises(RuntimeError) as caught:
        async with stream_from_thread(producer) as stream:
            if reading:
                async for item in stream:
                    received.append(item)
            else:
                await until(lambda: producer.has_left)
    assert type(caught.value) is RuntimeError
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)
    assert received == ([0] if reading else [])


async def test_a_cancellation_that_the_producer_lets_through_is_a_stop() -> None:
    """One that asks anyio itself needs no care for it."""

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(0)
        while True:
            from_thread.check_cancelled()
            time.sleep(0.0002)

    with CancelScope() as scope:
        async with stream_from_thread(produce) as stream:
            assert await stream.receive() == 0
            scope.cancel()
            await stream.receive()
    assert scope.cancelled_caught

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == 0


async def test_body_and_producer_both_fail_the_bodys_error_wins_and_the_others_is_a_note() -> None:
    producer = Scripted(fails={0: ValueError("the worker's")})
    error = raised(Body())
    with pytest.raises(Body) as caught:
        async with stream_from_thread(producer):
            await until(lambda: producer.has_left)
            raise error
    assert caught.value is error
    assert caught.value.__cause__ is not None
    (note,) = caught.value.__notes__
    assert "ValueError" in note
    assert "the worker's" in note
    assert "stream_from_thread" in note


async def test_a_producer_that_fails_because_it_is_stopped_is_a_note_too() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        try:
            while True:
                emit(0)
        except GenerationStopped:
            raise ValueError("while cleaning up") from None

    with pytest.raises(Body) as caught:
        async with stream_from_thread(produce) as stream:
            await stream.receive()
            raise Body
    assert "while cleaning up" in caught.value.__notes__[0]

    with pytest.raises(ValueError, match="while cleaning up"):
        async with stream_from_thread(produce) as stream:
            await stream.receive()

    with pytest.raises(ValueError, match="while cleaning up"):
        async with stream_from_thread(produce) as stream:
            await stream.receive()
            await stream.aclose()


async def test_an_error_without_a_repr_hides_nothing() -> None:
    class Unspeakable(Exception):
        def __repr__(self) -> str:
            raise AssertionError

        __str__ = __repr__

    producer = Scripted(fails={0: Unspeakable()})
    with pytest.raises(Body) as caught:
        async with stream_from_thread(producer):
            await until(lambda: producer.has_left)
            raise Body
    assert "Unspeakable" in caught.value.__notes__[0]


@each_error
async def test_what_the_body_raises_passes_as_the_same_object(
    make: Callable[[], BaseException],
) -> None:
    """On trio too, where a nursery would rebuild a group; and nothing is added to it."""
    error = raised(make())
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with stream_from_thread(Scripted()) as stream:
            await stream.receive()
            raise error
    assert caught.value is error
    assert is_untouched(error)


async def test_an_error_that_was_received_and_comes_out_of_the_body_is_noted_nowhere() -> None:
    error = ValueError()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        async with stream_from_thread(Scripted(fails={0: error})) as stream:
            await rest(stream)
    assert caught.value is error
    assert not hasattr(error, "__notes__")


async def test_an_error_that_was_received_and_handled_is_not_raised_again() -> None:
    async with stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
        with pytest.raises(ValueError):  # noqa: PT011
            await stream.receive()

    with CancelScope() as scope:
        async with stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
            scope.cancel()
            await anyio.sleep_forever()

    with pytest.raises(Body) as caught:
        async with stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
            raise Body
    assert not hasattr(caught.value, "__notes__")


async def test_an_error_is_raised_out_of_a_block_whose_stream_was_closed() -> None:
    error = ValueError()
    producer = Scripted(fails={0: error})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        async with stream_from_thread(producer) as stream:
            await until(lambda: producer.has_left)
            await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
    assert caught.value is error


async def test_a_bodys_error_survives_an_outer_cancellation_during_the_join() -> None:
    latch = Latch("item")

    async def cancel() -> None:
        outer.cancel()
        with CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
            latch.let_go()

    async with create_task_group() as tg:
        with CancelScope() as outer:
            with pytest.raises(Body):
                async with stream_from_thread(latch) as stream:
                    await stream.receive()
                    await until(latch.holding.is_set)
                    tg.start_soon(cancel)
                    raise Body
            assert not latch.running
            await checkpoint()
        assert outer.cancelled_caught


async def test_a_group_of_the_users_own_nursery_passes_through() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with stream_from_thread(Scripted()) as stream:
            async with create_task_group() as tg:

                async def fail() -> None:
                    raise Body

                tg.start_soon(fail)
                await rest(stream)
    assert [type(exc) for exc in caught.value.exceptions] == [Body]


@pytest.mark.parametrize("reading", [True, False])
async def test_an_error_leaves_no_reference_cycle(reading: bool) -> None:
    """A traceback leads to frames, these to the stream, which must not lead back to the error."""
    producer = Scripted(fails={0: ValueError()})
    with pytest.raises(ValueError):  # noqa: PT011
        async with stream_from_thread(producer) as stream:
            if reading:
                await stream.receive()
            else:
                await until(lambda: producer.has_left)
    assert state_of(stream).error is None


# -- 5: nothing hangs, nothing is lost


async def test_what_was_emitted_before_a_stall_arrives_during_the_stall() -> None:
    """The crossing budget holds items back, but not until the producer speaks again."""
    for size in [1, 2, 3, 10, 100, 1000]:
        latch = Latch(*range(size))
        async with stream_from_thread(latch) as stream:
            with anyio.fail_after(PATIENCE):
                assert [await stream.receive() for _ in range(size)] == list(range(size))
            assert latch.running
            latch.let_go()
            assert await rest(stream) == []


async def test_what_was_emitted_before_a_stall_arrives_at_a_consumer_that_comes_later() -> None:
    latch = Latch(*range(100))
    async with stream_from_thread(latch, max_buffer_size=1000) as stream:
        await until(latch.holding.is_set)
        with anyio.fail_after(PATIENCE):
            assert [await stream.receive() for _ in range(100)] == list(range(100))
        latch.let_go()


async def test_a_receive_that_waits_for_a_silent_producer_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks after what may be held, and then no more: thousands of streams may be waiting."""
    looks = 0
    publish = StreamState.publish

    def counted(state: Any) -> Any:
        nonlocal looks
        looks += 1
        return publish(state)

    monkeypatch.setattr(StreamState, "publish", counted)
    latch = Latch("item")
    async with stream_from_thread(latch) as stream:
        assert await stream.receive() == "item"
        await until(latch.holding.is_set)
        looks = 0
        with anyio.move_on_after(0.1):
            await stream.receive()
        latch.let_go()
        assert looks <= 3


@pytest.mark.parametrize("max_buffer_size", [1, 2, math.inf])
async def test_a_slow_consumer_gets_everything_in_order(max_buffer_size: float) -> None:
    async with stream_from_thread(Scripted(20), max_buffer_size=max_buffer_size) as stream:
        received: list[Any] = []
        async for item in stream:
            received.append(item)
            for _ in range(item % 4):
                await checkpoint()
    assert received == list(range(20))


async def test_consumers_may_take_turns() -> None:
    received: list[Any] = []
    async with stream_from_thread(Scripted(200)) as stream:
        lock = anyio.Lock()

        async def consume() -> None:
            while True:
                async with lock:
                    try:
                        received.append(await stream.receive())
                    except anyio.EndOfStream:
                        return

        async with create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(consume)
    assert received == list(range(200))


async def test_no_item_is_lost_to_deadlines() -> None:
    length = 2000
    producer = Scripted(length)
    rng = random.Random(2)
    received: list[Any] = []
    async with stream_from_thread(producer) as stream:
        while len(received) < length:
            with anyio.move_on_after(rng.random() * 0.002):
                received.append(await stream.receive())
    assert received == list(range(length))


async def test_no_item_is_lost_to_a_scope_that_is_cancelled_in_the_tick_of_its_arrival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled right before and right after the delivery that wakes the receive()."""
    publish = StreamState.publish
    scope = CancelScope()
    calls = 0

    def cancelling(state: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            scope.cancel()
        result = publish(state)
        if calls % 3 == 1:
            scope.cancel()
        return result

    monkeypatch.setattr(StreamState, "publish", cancelling)
    length = 1000
    received: list[Any] = []
    async with stream_from_thread(Scripted(length)) as stream:
        with anyio.fail_after(PATIENCE):
            while len(received) < length:
                with CancelScope() as scope:
                    received.append(await stream.receive())
    assert received == list(range(length))


@each_native_loop
def test_no_item_is_lost_to_native_cancellation(native: Native) -> None:
    async def main() -> list[int]:
        rng = random.Random(3)
        received: list[int] = []
        async with stream_from_thread(Scripted(2000)) as stream:
            while True:
                task = asyncio.create_task(stream.receive())
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    received.append(await task)
                except asyncio.CancelledError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(2000))


@each_native_loop
def test_no_item_is_lost_to_native_cancellation_in_the_tick_of_its_arrival(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = StreamState.publish
    task: asyncio.Task[int] | None = None
    calls = 0

    def cancelling(state: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0 and task:
            task.cancel()
        result = publish(state)
        if calls % 3 == 1 and task:
            task.cancel()
        return result

    monkeypatch.setattr(StreamState, "publish", cancelling)

    async def main() -> list[int]:
        nonlocal task
        received: list[int] = []
        async with stream_from_thread(Scripted(1000)) as stream:
            while True:
                task = asyncio.create_task(stream.receive())
                try:
                    received.append(await task)
                except asyncio.CancelledError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(1000))


@each_native_loop
def test_no_item_is_lost_to_asyncio_timeout(native: Native) -> None:
    async def main() -> list[int]:
        rng = random.Random(4)
        received: list[int] = []
        async with stream_from_thread(Scripted(2000)) as stream:
            while True:
                try:
                    async with asyncio.timeout(rng.random() * 0.002):
                        received.append(await stream.receive())
                except TimeoutError:
                    continue
                except anyio.EndOfStream:
                    return received

    assert native.run(main) == list(range(2000))


async def test_the_end_and_the_close_wake_a_waiting_receive() -> None:
    latch = Latch()
    async with stream_from_thread(latch) as stream:

        async def wait() -> None:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

        async with create_task_group() as tg:
            tg.start_soon(wait)
            await until(latch.holding.is_set)
            latch.let_go()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_a_receive_that_waits_while_the_block_is_left_is_told_so() -> None:
    outcome = []

    async def wait(stream: Stream) -> None:
        try:
            await stream.receive()
        except (anyio.ClosedResourceError, anyio.EndOfStream) as exc:
            outcome.append(exc)

    async with create_task_group() as tg:
        async with stream_from_thread(Scripted(allowed=0)) as stream:
            tg.start_soon(wait, stream)
            await anyio.wait_all_tasks_blocked()
    assert len(outcome) == 1


async def test_a_producer_without_items_ends_at_once() -> None:
    async with stream_from_thread(Scripted(0)) as stream:
        assert await rest(stream) == []


async def test_none_and_other_false_items_are_items() -> None:
    items = [None, 0, "", (), False, StopIteration, anyio.EndOfStream()]
    async with stream_iterable(lambda: items) as stream:
        assert await rest(stream) == items


async def test_a_thread_that_ends_is_not_needed_again() -> None:
    """Many streams one after the other share the loop's idle threads."""
    threads = set()
    for _ in range(50):
        producer = Scripted(1)
        async with stream_from_thread(producer) as stream:
            await rest(stream)
        threads.add(producer.thread)
    assert len(threads) <= 10


async def test_the_repr_tells_the_state() -> None:
    limiter = CapacityLimiter(1)
    producer = Scripted(1, allowed=0)
    async with limiter:
        async with stream_from_thread(producer, limiter=limiter) as stream:
            assert repr(stream) == "<anystreamer.ThreadStream waiting for its turn>"
            limiter.release()
            await until(lambda: producer.entered)
            assert repr(stream) == "<anystreamer.ThreadStream running>"
            producer.allow()
            await rest(stream)
            assert repr(stream) == "<anystreamer.ThreadStream ended>"
            await limiter.acquire()
    assert repr(stream) == "<anystreamer.ThreadStream closed>"


# -- 6: bounded, by choice


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_full_buffer_holds_the_producer_until_an_item_is_taken(size: int) -> None:
    producer = Scripted(size + 3)
    async with stream_from_thread(producer, max_buffer_size=size) as stream:
        for taken in range(4):
            allowed = size + taken
            await until(lambda: producer.steps >= allowed)  # noqa: B023
            await anyio.sleep(0.025)  # more than it takes to look at the buffer again
            assert producer.steps == allowed
            assert await stream.receive() == taken
        assert await rest(stream) == list(range(4, size + 3))


async def test_an_unbounded_producer_is_held_by_nothing() -> None:
    producer = Scripted(10_000)
    async with stream_from_thread(producer) as stream:
        await until(lambda: producer.has_left)
        assert await rest(stream) == list(range(10_000))


async def test_a_held_producer_gives_way_to_one_that_waits_for_the_limiter() -> None:
    limiter = CapacityLimiter(1)
    first, second = Scripted(10), Scripted(3)
    async with stream_from_thread(first, max_buffer_size=2, limiter=limiter) as stream:
        await until(lambda: first.steps == 2)
        async with stream_from_thread(second, limiter=limiter) as other:
            with anyio.fail_after(PATIENCE):
                assert await rest(other) == [0, 1, 2]
        assert first.has_left
        assert await rest(stream) == list(range(10))


async def test_nested_bounded_streams_on_one_limiter_in_one_task_do_not_deadlock() -> None:
    limiter = CapacityLimiter(1)
    received: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with stream_from_thread(Scripted(3), max_buffer_size=1, limiter=limiter) as outer:
            async for i in outer:
                async with stream_from_thread(
                    Scripted(3), max_buffer_size=1, limiter=limiter
                ) as middle:
                    async for j in middle:
                        async with stream_from_thread(
                            Scripted(2), max_buffer_size=1, limiter=limiter
                        ) as inner:
                            async for k in inner:
                                received.append((i, j, k))
    assert received == [(i, j, k) for i in range(3) for j in range(3) for k in range(2)]


@pytest.mark.parametrize("tokens", [1, 2])
async def test_bounded_streams_on_one_limiter_across_tasks_do_not_deadlock(tokens: int) -> None:
    """Each task opens its stream, and reads it only when the next task has read its own."""
    limiter = CapacityLimiter(tokens)
    done = [anyio.Event() for _ in range(6)]
    done[-1].set()

    async def consume(number: int) -> None:
        async with stream_from_thread(Scripted(5), max_buffer_size=1, limiter=limiter) as stream:
            await done[number + 1].wait()
            assert await rest(stream) == list(range(5))
        done[number].set()

    with anyio.fail_after(PATIENCE):
        async with create_task_group() as tg:
            for number in range(5):
                tg.start_soon(consume, number)
                await anyio.wait_all_tasks_blocked()


async def test_a_producer_that_gave_way_is_held_again_when_nobody_waits_any_more() -> None:
    limiter = CapacityLimiter(1)
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=1, limiter=limiter) as stream:
        await until(lambda: producer.steps == 1)
        async with stream_from_thread(Scripted(1), limiter=limiter):
            await until(lambda: producer.steps >= 3)
        # It has been left while it was queued: nobody waits.
        await anyio.sleep(0.05)
        steps = producer.steps
        await anyio.sleep(0.025)
        assert producer.steps == steps
        received = [await stream.receive() for _ in range(steps)]
    assert received == list(range(steps))


async def test_stop_of_a_held_producer_keeps_what_waits() -> None:
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=3) as stream:
        await until(lambda: producer.steps == 3)
        stream.stop()
        received = await rest(stream)
    assert received == list(range(producer.steps))
    assert producer.steps <= 4


# -- 10: every receive() is a checkpoint


async def test_other_tasks_run_between_two_receives_although_items_are_ready() -> None:
    producer = Scripted(50)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async def gives_turns(receive: Callable[[], Awaitable[object]]) -> bool:
        """Tell whether it is a checkpoint. trio shuffles: the other one may be first, then last."""
        before = turns
        for _ in range(3):
            with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError):
                await receive()
        return turns > before

    async with stream_from_thread(producer) as stream, create_task_group() as tg:
        await until(lambda: producer.has_left)
        tg.start_soon(other)
        for _ in range(16):
            assert await gives_turns(stream.receive)
        assert await rest(stream) == [48, 49]
        assert await gives_turns(stream.receive)  # at the end
        assert await gives_turns(stream.aclose)
        assert await gives_turns(stream.receive)  # closed
        tg.cancel_scope.cancel()


@pytest.mark.parametrize("state", ["ready", "waiting", "ended", "failed", "closed"])
async def test_a_cancelled_receive_says_so_in_each_state_and_takes_nothing(state: str) -> None:
    producer = Scripted(
        0 if state == "ended" else 3,
        allowed=0 if state == "waiting" else math.inf,
        fails={0: ValueError()} if state == "failed" else None,
    )
    async with stream_from_thread(producer) as stream:
        if state != "waiting":
            await until(lambda: producer.has_left)
        if state == "closed":
            await stream.aclose()
        for _ in range(2):
            with CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            assert scope.cancelled_caught
        producer.allow()
        if state == "failed":
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
        elif state == "closed":
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
        else:
            assert await rest(stream) == list(range(producer.steps))


async def test_a_second_receive_at_once_is_refused_and_harms_nothing() -> None:
    producer = Scripted(2, allowed=0)
    received: list[Any] = []

    async def receive() -> None:
        received.append(await stream.receive())

    async with stream_from_thread(producer) as stream:
        async with create_task_group() as tg:
            tg.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            for _ in range(2):
                with pytest.raises(anyio.BusyResourceError, match="receiving from"):
                    await stream.receive()
            producer.allow()
        received += await rest(stream)
    assert received == [0, 1]


async def test_a_receive_that_was_cancelled_does_not_keep_the_next_one_busy() -> None:
    producer = Scripted(2, allowed=0)
    async with stream_from_thread(producer) as stream:
        with anyio.move_on_after(0.001):
            await stream.receive()
        producer.allow()
        assert await rest(stream) == [0, 1]


# -- the producer's thread


context_variable: contextvars.ContextVar[str] = contextvars.ContextVar("context_variable")


async def test_the_producer_sees_the_openers_context_variables() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(context_variable.get())
        context_variable.set("the thread's own")

    context_variable.set("the opener's")
    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == ["the opener's"]
    assert context_variable.get() == "the opener's"


async def test_the_producer_runs_in_a_thread_that_may_talk_to_the_loop() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(from_thread.run_sync(threading.get_ident))
        emit(from_thread.run(a_coroutine))

    async def a_coroutine() -> str:
        await checkpoint()
        return sniffio.current_async_library()

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == threading.get_ident()
        assert await stream.receive() == sniffio.current_async_library()


async def test_the_producer_may_run_a_loop_of_its_own_and_emit_from_it() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        async def inner() -> None:
            for item in range(3):
                await asyncio.sleep(0)
                assert not should_stop()
                emit(item)

        asyncio.run(inner())

    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == [0, 1, 2]


async def test_emit_from_another_thread_is_refused() -> None:
    errors = []

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        def foreign() -> None:
            assert not should_stop()  # this may be asked from anywhere
            try:
                emit("foreign")
            except RuntimeError as exc:
                errors.append(exc)

        thread = threading.Thread(target=foreign)
        thread.start()
        thread.join()
        emit("own")

    async with stream_from_thread(produce) as stream:
        assert await rest(stream) == ["own"]
        emit_on_the_loop = errors  # by now
    assert len(emit_on_the_loop) == 1
    assert "thread" in str(errors[0])


async def test_emit_after_the_producers_end_is_refused() -> None:
    """By another producer in the same thread too: threads are used again."""
    kept: list[Emit] = []

    def keep(emit: Emit, should_stop: ShouldStop) -> None:
        kept.append(emit)
        emit(threading.get_ident())

    def use(emit: Emit, should_stop: ShouldStop) -> None:
        emit(threading.get_ident())
        with pytest.raises((RuntimeError, GenerationStopped)):
            kept[0]("late")

    same_thread = False
    while not same_thread:
        kept.clear()
        async with stream_from_thread(keep) as first:
            (one,) = await rest(first)
        async with stream_from_thread(use) as second:
            (other,) = await rest(second)
        same_thread = one == other
    with pytest.raises((RuntimeError, GenerationStopped)):
        kept[0]("late, and on the loop")


# -- iterables


class Cursor:
    """An iterable that is its own iterator and has to be closed, in the thread that made it."""

    def __init__(self, length: float = 3, *, fails_at: float = math.inf) -> None:
        self.length = length
        self.fails_at = fails_at
        self.position = 0
        self.threads = [threading.get_ident()]
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        self.threads.append(threading.get_ident())
        return self

    def __next__(self) -> int:
        self.threads.append(threading.get_ident())
        assert not self.closed
        if self.position >= self.fails_at:
            raise ConnectionError("gone")
        if self.position >= self.length:
            raise StopIteration
        self.position += 1
        return self.position - 1

    def close(self) -> None:
        self.threads.append(threading.get_ident())
        self.closed += 1


class CursorOf:
    """An iterable whose iterators are other objects, with a close() of their own."""

    def __init__(self) -> None:
        self.cursors: list[Cursor] = []
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        self.cursors.append(Cursor(math.inf))
        return self.cursors[-1]

    def close(self) -> None:
        assert self.cursors[-1].closed
        self.closed += 1


async def test_an_iterable_is_made_iterated_and_closed_in_one_thread() -> None:
    cursors = []

    def connect() -> Cursor:
        cursors.append(Cursor())
        return cursors[-1]

    async with stream_iterable(connect) as stream:
        assert await rest(stream) == [0, 1, 2]
        assert cursors[0].closed == 1  # before the end is seen
    (thread,) = set(cursors[0].threads)
    assert thread != threading.get_ident()
    assert cursors[0].closed == 1


async def test_an_iterable_that_is_left_early_is_closed_before_the_block_ends() -> None:
    cursors = []

    def connect() -> Cursor:
        cursors.append(Cursor(math.inf))
        return cursors[-1]

    for way in [leaving, raising, cancelled_before_the_end, stopped, closed]:
        try:
            with CancelScope() as scope:
                async with stream_iterable(connect) as stream:
                    assert await stream.receive() == 0
                    await way(stream, Scripted(), scope)
        except Body:
            pass
        assert cursors[-1].closed == 1
        assert len(set(cursors[-1].threads)) == 1


async def test_a_generators_finally_runs_in_its_thread() -> None:
    threads = []

    def generate() -> Iterator[int]:
        threads.append(threading.get_ident())
        try:
            yield 0
            yield 1
            yield 2
        finally:
            threads.append(threading.get_ident())

    async with stream_iterable(generate) as stream:
        assert await rest(stream) == [0, 1, 2]
    async with stream_iterable(generate) as stream:
        assert await stream.receive() == 0
    assert len(threads) == 4
    assert threads[0] == threads[1]
    assert threads[2] == threads[3]
    assert threading.get_ident() not in threads


async def test_an_iterator_and_its_iterable_are_both_closed() -> None:
    iterable = CursorOf()
    async with stream_iterable(lambda: iterable) as stream:
        assert await stream.receive() == 0
    assert iterable.closed == 1
    assert [cursor.closed for cursor in iterable.cursors] == [1]


async def test_an_iterable_that_fails_is_closed_and_its_error_arrives() -> None:
    cursor = Cursor(fails_at=2)
    received: list[Any] = []
    with pytest.raises(ConnectionError, match="gone"):
        async with stream_iterable(lambda: cursor) as stream:
            async for item in stream:
                received.append(item)
    assert received == [0, 1]
    assert cursor.closed == 1


async def test_an_iterable_that_cannot_be_made_raises_its_own_error() -> None:
    error = ConnectionError()

    def connect() -> Cursor:
        raise error

    with pytest.raises(ConnectionError) as caught:
        async with stream_iterable(connect) as stream:
            await rest(stream)
    assert caught.value is error


async def test_a_stop_iteration_from_making_the_iterable_is_no_end() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with stream_iterable(lambda: next(iter(list[list[int]]()))) as stream:
            await rest(stream)


async def test_what_cannot_be_iterated_is_closed_nevertheless() -> None:
    class Broken(Cursor):
        def __iter__(self) -> Iterator[int]:
            raise LookupError

    cursor = Broken()
    with pytest.raises(LookupError):
        async with stream_iterable(lambda: cursor) as stream:
            await rest(stream)
    assert cursor.closed == 1

    with pytest.raises(TypeError, match="not iterable"):
        async with stream_iterable(lambda: 1) as stream:  # type: ignore[arg-type, return-value]
            await rest(stream)


async def test_an_error_of_close_arrives_and_takes_the_first_one_along() -> None:
    class Broken(Cursor):
        def close(self) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        async with stream_iterable(lambda: Broken()) as stream:
            assert await rest(stream) == [0, 1, 2]
    with pytest.raises(LookupError) as caught:
        async with stream_iterable(lambda: Broken(fails_at=0)) as stream:
            await rest(stream)
    assert isinstance(caught.value.__context__, ConnectionError)
    with pytest.raises(LookupError):
        async with stream_iterable(lambda: Broken(math.inf)) as stream:
            await stream.receive()


async def test_plain_iterables_need_no_close() -> None:
    for make in (
        lambda: [1, 2],
        lambda: range(1, 3),
        lambda: {1: "a", 2: "b"},
        lambda: iter((1, 2)),
    ):
        async with stream_iterable(make) as stream:
            assert await rest(stream) == [1, 2]


async def test_an_iterable_is_bounded_and_queued_like_any_producer() -> None:
    limiter = CapacityLimiter(1)
    cursor = Cursor(math.inf)
    async with stream_iterable(lambda: cursor, max_buffer_size=2, limiter=limiter) as stream:
        await until(lambda: cursor.position == 2)
        assert limiter.statistics().borrowed_tokens == 1
        assert await stream.receive() == 0
    assert cursor.position <= 4


# -- what is refused, and how


async def an_async_function(emit: Emit, should_stop: ShouldStop) -> None:
    raise AssertionError


async def an_async_generator_function(emit: Emit, should_stop: ShouldStop) -> Any:
    yield


def a_generator_function(emit: Emit, should_stop: ShouldStop) -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "produce",
    [
        None,
        "text",
        [1, 2, 3],
        an_async_function,
        functools.partial(an_async_function),
        AsyncCallable(),
        an_async_generator_function,
        a_generator_function,
    ],
    ids=lambda produce: getattr(produce, "__name__", type(produce).__name__),
)
def test_a_producer_that_is_no_blocking_function_is_refused_at_once(produce: Any) -> None:
    with pytest.raises(TypeError, match=r"produce\(emit, should_stop\)"):
        stream_from_thread(produce)


@pytest.mark.parametrize("made", [[1, 2], range(3), iter("abc"), (i for i in "abc"), None])
def test_an_iterable_in_place_of_what_makes_one_is_refused_at_once(made: Any) -> None:
    with pytest.raises(TypeError, match=r"stream_iterable\(lambda"):
        stream_iterable(made)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_a_wrong_limiter_is_refused_at_once(opener: Any) -> None:
    for limiter in [1, threading.Lock(), anyio.Semaphore(1), CapacityLimiter]:
        with pytest.raises(TypeError, match=r"anyio\.CapacityLimiter"):
            opener(lambda *_: [], limiter=limiter)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
def test_a_wrong_buffer_size_is_refused_at_once(opener: Any) -> None:
    for size in [0, -1, -math.inf]:
        with pytest.raises((ValueError, TypeError), match="max_buffer_size"):
            opener(lambda *_: [], max_buffer_size=size)
    for wrong in [1.5, math.nan, "1", None, True]:
        with pytest.raises(TypeError, match="max_buffer_size"):
            opener(lambda *_: [], max_buffer_size=wrong)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
async def test_the_unopened_object_shows_how_to_open_it(opener: Any) -> None:
    right_form = rf"async with {opener.__name__}\(\.\.\.\) as stream"
    unopened = opener(lambda *_: [])
    with pytest.raises(TypeError, match=right_form):
        async for _ in unopened:
            pass
    with pytest.raises(TypeError, match=right_form):
        await unopened
    with pytest.raises(TypeError, match=right_form), unopened:
        pass
    with pytest.raises(TypeError, match=right_form):
        for _ in unopened:
            pass
    async with unopened as stream:
        assert await rest(stream) == []


async def test_what_was_opened_once_cannot_be_opened_again() -> None:
    context = stream_from_thread(Scripted(2))
    async with context as stream:
        with pytest.raises(RuntimeError, match=r"stream_from_thread\(\) has been opened before"):
            async with context:
                pass
        assert await rest(stream) == [0, 1]
    with pytest.raises(RuntimeError, match="call it again"):
        async with context:
            pass


def test_without_a_running_loop_it_says_so_and_leaves_nothing_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opening = stream_from_thread(Scripted()).__aenter__()
        with pytest.raises(RuntimeError, match=r"event loop|not in async context"):
            opening.send(None)
        del opening
        gc.collect()


def test_what_is_never_opened_complains_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        context = stream_from_thread(Scripted())
        del context
        gc.collect()


@pytest.mark.parametrize("way", ["leaving", "raising", "cancelled"])
async def test_a_stream_leaves_nothing_open(way: str) -> None:
    for _ in range(3):
        with CancelScope() as scope:
            try:
                async with stream_from_thread(Scripted()) as stream:
                    await stream.receive()
                    if way == "raising":
                        raise Body
                    if way == "cancelled":
                        scope.cancel()
                        await checkpoint()
            except Body:
                pass
        del stream
        gc.collect()  # unclosed memory object streams would warn


# -- what the library's own streams build on: something to prepare before the turn


class PreparedTask(ThreadTask[Stream]):
    """Calls a function in a thread first."""

    def __init__(
        self, prepare: Callable[[], None], producer: Scripted, limiter: CapacityLimiter | None
    ) -> None:
        state = StreamState[int]()
        super().__init__(
            "stream_of_tests",
            state,
            ThreadStream(state),
            lambda worker: producer(worker.emit, worker.should_stop),
            lambda: limiter,
        )
        self._prepare = prepare

    async def prepare(self) -> None:
        await run_sync_joined(self._prepare)
        await checkpoint()


def prepared(
    prepare: Callable[[], None], producer: Scripted, limiter: CapacityLimiter | None = None
) -> StreamContext[Stream]:
    return ThreadContext("stream_of_tests", lambda: PreparedTask(prepare, producer, limiter))


async def test_what_is_prepared_is_ready_at_the_entry_without_a_turn() -> None:
    limiter = CapacityLimiter(1)
    threads = []
    async with limiter:
        async with prepared(lambda: threads.append(threading.get_ident()), Scripted(), limiter):
            assert threads
            assert threads != [threading.get_ident()]


async def test_an_error_of_the_preparation_is_raised_at_the_entry() -> None:
    error = raised(ValueError())
    producer = Scripted()

    def fail() -> None:
        raise error

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        async with prepared(fail, producer):
            pytest.fail("entered")
    assert caught.value is error
    assert is_untouched(error)
    assert not producer.entered


async def test_a_preparation_that_is_cancelled_is_waited_for_and_nothing_starts() -> None:
    holding, go_on = threading.Event(), threading.Event()
    left = []
    producer = Scripted()

    def slow() -> None:
        holding.set()
        assert go_on.wait(PATIENCE)
        left.append(True)

    async def cancel() -> None:
        await until(holding.is_set)
        scope.cancel()
        with CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        go_on.set()

    async with create_task_group() as tg:
        with CancelScope() as scope:
            tg.start_soon(cancel)
            try:
                async with prepared(slow, producer):
                    pytest.fail("entered")
            finally:
                assert left == [True]
    assert scope.cancelled_caught
    assert not producer.entered


@each_native_loop
@pytest.mark.parametrize("every_task", [False, True])
def test_a_preparation_that_is_cancelled_natively_is_waited_for_too(
    native: Native, every_task: bool
) -> None:
    holding, go_on = threading.Event(), threading.Event()
    left = []
    producer = Scripted()

    def slow() -> None:
        holding.set()
        assert go_on.wait(PATIENCE)
        left.append(True)

    async def consume() -> None:
        try:
            async with prepared(slow, producer):
                pytest.fail("entered")
        finally:
            assert left == [True]

    async def main() -> None:
        task = asyncio.create_task(consume())
        await until(holding.is_set)
        for _ in range(3):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for other in others if every_task else {task}:
                other.cancel()
            await settle()
            assert not left
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    native.run(main)
    assert left == [True]
    assert not producer.entered
