"""`anystreamer.testing.Gate` and `wait_until_held`: a test knows where the producer is."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio.testing
from anyio import CancelScope

from anystreamer import FinishReason, open_engine, stream_from_thread, stream_text, sync
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, Native, Scripted, each_native_loop, until
from ..helpers.ways_out import WAYS_OUT, BodyError, WayOut, each_of, reaching_the_end, stopped


class Engine:
    """A fake engine: it comes to a gate before each item."""

    def __init__(self, gate: Gate, length: int = 1000, *, can_be_interrupted: bool = True) -> None:
        self.gate = gate
        self.length = length
        self.can_be_interrupted = can_be_interrupted
        self.items = 0
        self.begun = self.running = False

    def __call__(self, emit: Any, should_stop: Any) -> None:
        self.begun = self.running = True
        try:
            for item in range(self.length):
                if not self.gate.wait(should_stop if self.can_be_interrupted else None):
                    break
                self.items += 1
                emit(item)
        finally:
            self.running = False


def on_thread(func: Callable[[], object]) -> None:
    thread = threading.Thread(target=func)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# -- a gate


@pytest.mark.parametrize("run", [lambda func: func(), on_thread], ids=["loop", "thread"])
async def test_it_is_opened_from_the_loop_and_from_any_thread(
    run: Callable[[Callable[[], object]], None],
) -> None:
    engine = Engine(Gate(), 3)
    async with stream_from_thread(engine) as stream:
        await engine.gate.reached()
        assert engine.items == 0
        run(engine.gate.let_pass)
        assert await stream.receive() == 0
        await engine.gate.reached()
        run(engine.gate.open)
        assert [item async for item in stream] == [1, 2]


async def test_a_producer_takes_the_steps_that_it_is_allowed() -> None:
    engine = Engine(Gate())
    async with stream_from_thread(engine) as stream:
        for step in range(50):
            await engine.gate.reached()
            assert engine.items == step
            engine.gate.let_pass()
        await engine.gate.reached()
        engine.gate.let_pass(3)
        await until(lambda: engine.items == 53)
        await engine.gate.reached()
        assert engine.items == 53
        assert [await stream.receive() for _ in range(53)] == list(range(53))


async def test_passes_are_kept_for_those_who_come_later() -> None:
    gate = Gate()
    gate.let_pass(2)
    engine = Engine(gate)
    async with stream_from_thread(engine) as stream:
        await gate.reached()
        assert engine.items == 2
        assert gate.is_reached
        assert await stream.receive() == 0


async def test_several_threads_pass_in_the_order_in_which_they_came() -> None:
    gate, passed = Gate(), []
    threads = []
    for number in range(4):
        gate_was_reached_by = number

        def come(number: int = number) -> None:
            gate.wait()
            passed.append(number)

        threads.append(threading.Thread(target=come))
        threads[-1].start()
        await until(lambda: len(gate._waiting) == gate_was_reached_by + 1)  # noqa: B023
    for number in range(3):
        gate.let_pass()
        await until(lambda: len(passed) == number + 1)  # noqa: B023
    assert passed == [0, 1, 2]
    await gate.reached()
    gate.open()
    for thread in threads:
        thread.join(PATIENCE)
    assert passed == [0, 1, 2, 3]


async def test_it_was_reached_if_a_thread_has_passed_it_since_it_is_open() -> None:
    gate = Gate()
    gate.open()
    assert not gate.is_reached
    async with stream_from_thread(Engine(gate, 1)) as stream:
        assert await stream.receive() == 0
    await gate.reached()
    gate.wait_until_reached(0)


@each_of(*(way for way in WAYS_OUT if way not in (reaching_the_end, stopped)))
async def test_a_stop_ends_the_wait_of_a_producer_that_can_be_interrupted(way: WayOut) -> None:
    engine = Engine(Gate())
    engine.gate.let_pass()
    with CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_from_thread(engine) as stream:
            await engine.gate.reached()
            await way(stream, scope)
    assert not engine.running
    assert engine.items == 1
    assert not engine.gate.is_reached


async def test_a_stop_does_not_end_a_step_that_cannot_be_interrupted() -> None:
    engine = Engine(Gate(), can_be_interrupted=False)
    async with stream_from_thread(engine) as stream:
        await engine.gate.reached()
        stream.stop()
        assert engine.running
        engine.gate.let_pass()
        assert await stream.receive() == 0
    assert engine.items == 1


async def test_a_test_that_fails_between_two_gates_ends() -> None:
    """The end of the block waits for the producer, and the producer for the test."""
    engine = Engine(Gate(timeout=0.05), can_be_interrupted=False)
    with pytest.raises(AssertionError, match="the test's") as caught:
        async with stream_from_thread(engine):
            await until(lambda: engine.begun)  # it may have waited long enough meanwhile
            raise AssertionError("the test's")
    assert "the test has not opened the gate within 0.05 s" in caught.value.__notes__[0]
    assert not engine.running


def test_a_test_without_an_event_loop_waits_for_a_thread() -> None:
    gate = Gate()
    with pytest.raises(TimeoutError, match=r"no thread has reached the gate within 0\.01 s"):
        gate.wait_until_reached(timeout=0.01)
    model = ScriptedModel(["a", gate, "b"])
    with sync.stream_text(model, model.tokenizer, "hi") as stream:
        assert next(iter(stream)) == "a"
        gate.wait_until_reached(timeout=float("inf"))
        stream.stop()
        gate.open()
        assert stream.read() == "b"
    assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be at least 0 seconds"):
        Gate(timeout=timeout)


@pytest.mark.parametrize("times", [0, -1])
def test_what_lets_nobody_pass_is_refused(times: int) -> None:
    with pytest.raises(ValueError, match="times must be at least 1"):
        Gate().let_pass(times)


# -- tasks that wait for a thread


async def test_each_task_that_waits_is_told() -> None:
    gate, told = Gate(), []

    async def wait(number: int) -> None:
        await gate.reached()
        told.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, number)
        with anyio.move_on_after(0):
            await gate.reached()
        await anyio.wait_all_tasks_blocked()
        assert not told
        gate_thread = threading.Thread(target=gate.wait)
        gate_thread.start()
    gate.open()
    gate_thread.join(PATIENCE)
    assert sorted(told) == list(range(5))


async def test_a_task_that_is_cancelled_as_the_thread_comes_is_not_waited_for() -> None:
    for _ in range(50):
        gate = Gate()
        thread = threading.Thread(target=gate.wait)
        with CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(gate.reached)
                await anyio.lowlevel.checkpoint()  # or the next would sleep on asyncio, 50 times
                await anyio.wait_all_tasks_blocked()
                thread.start()
                scope.cancel()
        gate.open()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@each_native_loop
def test_a_thread_that_comes_after_the_loop_has_ended_goes_on(native: Native) -> None:
    gate = Gate()
    gate.open()
    loop = asyncio.new_event_loop() if not native.uvloop else native.runner().get_loop()
    task = loop.create_task(gate.reached())
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # under the task
    on_thread(gate.wait)
    with contextlib.suppress(BaseException):
        task.get_coro().close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_no_clock_has_a_part_in_it() -> None:
    """No sleep ends on an event loop whose clock stands still."""

    async def main() -> None:
        engine = Engine(Gate())
        async with stream_from_thread(engine, max_buffer_size=2) as stream:
            await engine.gate.reached()
            engine.gate.open()
            await stream.wait_until_held()
            assert engine.items == 2
        assert trio.current_time() == start

    clock = trio.testing.MockClock()
    start = clock.current_time()
    trio.run(main, clock=clock)


# -- a full buffer


async def test_a_producer_that_is_held_goes_no_further() -> None:
    producer = Scripted()
    async with stream_from_thread(producer, max_buffer_size=3) as stream:
        for taken in range(5):
            await stream.wait_until_held()
            assert producer.steps == 3 + taken
            await stream.wait_until_held()  # at once
            assert await stream.receive() == taken


async def test_it_waits_until_the_buffer_is_full() -> None:
    gate = Gate()
    engine = Engine(gate)
    told: list[int] = []

    async def wait() -> None:
        await stream.wait_until_held()
        told.append(engine.items)

    async with stream_from_thread(engine, max_buffer_size=2) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await gate.reached()
            gate.let_pass()
            await gate.reached()
            assert not told
            gate.let_pass()
        assert told == [2, 2]
        assert not gate.is_reached


async def test_many_items_at_once_hold_it_until_they_fit() -> None:
    def produce(emit: Any, should_stop: Any) -> None:
        emit.many(range(5))
        emit(5)

    async with stream_from_thread(produce, max_buffer_size=2) as stream:
        for taken in range(4):
            await stream.wait_until_held()
            assert await stream.receive() == taken
        assert [item async for item in stream] == [4, 5]


async def test_what_is_never_held_is_not_waited_for() -> None:
    async with stream_from_thread(Scripted(3)) as stream:
        with pytest.raises(RuntimeError, match="unbounded, so nothing holds it"):
            await stream.wait_until_held()
    async with stream_from_thread(Scripted(3), max_buffer_size=4) as stream:
        with pytest.raises(RuntimeError, match="has ended, so nothing holds it"):
            await stream.wait_until_held()
    with pytest.raises(RuntimeError, match="has ended, so nothing holds it"):
        await stream.wait_until_held()


@pytest.mark.parametrize("stop", ["stop", "aclose"])
async def test_a_stop_ends_the_wait(stop: str) -> None:
    engine = Engine(Gate())

    async def wait() -> None:
        with pytest.raises(RuntimeError, match="has ended"):
            await stream.wait_until_held()

    async with stream_from_thread(engine, max_buffer_size=2) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            if stop == "stop":
                stream.stop()
            else:
                await stream.aclose()


async def test_a_stream_in_the_queue_waits_for_its_turn_first() -> None:
    turns = anyio.CapacityLimiter(1)
    first, second = Scripted(1, allowed=0), Scripted()
    async with stream_from_thread(first, limiter=turns) as one:
        async with stream_from_thread(second, limiter=turns, max_buffer_size=2) as other:
            with anyio.move_on_after(0.01) as waiting:
                await other.wait_until_held()
            assert waiting.cancelled_caught
            first.allow()
            assert [item async for item in one] == [0]
            await other.wait_until_held()
    assert second.steps == 2


async def test_text_is_held_too() -> None:
    model = ScriptedModel(["a", "b", "c", "d"])
    async with stream_text(model, model.tokenizer, "hi", max_buffer_size=2) as stream:
        await stream.wait_until_held()
        assert model.steps == 2
        assert await stream.read() == "abcd"
    async with open_engine(model, model.tokenizer) as engine:
        async with engine.stream_text("hi", max_buffer_size=1) as stream:
            await stream.wait_until_held()
            assert model.steps == 5 + 1


def test_text_without_an_event_loop_is_held_too() -> None:
    model = ScriptedModel(["a", "b", "c", "d"])
    with sync.stream_text(model, model.tokenizer, "hi", max_buffer_size=2) as stream:
        stream.wait_until_held()
        assert model.steps == 2
        assert stream.read() == "abcd"
