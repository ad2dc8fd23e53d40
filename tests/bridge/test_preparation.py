"""What the library's own streams build on: something to prepare before the turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter, create_task_group
from anyio.lowlevel import checkpoint

from anystreamer import ThreadStream
from anystreamer._bridge import (
    StreamContext,
    StreamState,
    ThreadContext,
    ThreadTask,
    run_sync_joined,
)

from ..helpers.errors import is_untouched, raised
from ..helpers.scripted import PATIENCE, Native, Scripted, each_native_loop, settle, until


class PreparedTask(ThreadTask[ThreadStream[int]]):
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
) -> StreamContext[ThreadStream[int]]:
    return ThreadContext("stream_of_tests", lambda: PreparedTask(prepare, producer, limiter))


async def test_the_preparation_is_done_at_the_entry_without_a_turn() -> None:
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
