"""A producer that calls into the loop with `anyio.from_thread`, and is stopped meanwhile."""

from __future__ import annotations

import time

import anyio
import pytest
import sniffio
from anyio import CancelScope, from_thread

from anystreamer import stream_from_thread

from ..helpers.scripted import PATIENCE, Emit, ShouldStop, until
from ..helpers.ways_out import WAYS_THAT_CANCEL, BodyError, WayOut, each_of
from . import from_thread_run


class Caller:
    """Awaits something in the loop: at once, or only after it was told to stop."""

    def __init__(self, *, late: bool, times: int = 1) -> None:
        self.late = late
        self.times = times
        self.calls = 0
        self.ended = 0
        self.running = False

    def __call__(self, emit: Emit, should_stop: ShouldStop) -> None:
        self.running = True
        try:
            emit("item")
            deadline = time.monotonic() + PATIENCE
            while self.late and not should_stop():
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            for _ in range(self.times):
                self.calls += 1
                try:
                    from_thread.run(anyio.Event().wait)
                except BaseException:
                    self.ended += 1
                    if self.calls == self.times:
                        raise
        finally:
            self.running = False


@pytest.mark.parametrize("late", [False, True], ids=["before the stop", "after the stop"])
@each_of(*WAYS_THAT_CANCEL)
async def test_a_producer_that_awaits_something_in_the_loop_is_joined(
    way: WayOut, late: bool
) -> None:
    caller = Caller(late=late)
    with CancelScope() as scope:
        try:
            async with stream_from_thread(caller) as stream:
                assert await stream.receive() == "item"
                await until(lambda: late or caller.calls)
                await way(stream, scope)
        except BodyError:
            pass
    assert not caller.running
    assert caller.ended == 1


async def test_each_call_that_a_producer_makes_after_its_end_is_ended() -> None:
    caller = Caller(late=True, times=5)
    async with stream_from_thread(caller) as stream:
        await stream.receive()
    assert caller.ended == 5


async def test_anyio_itself_cancels_such_a_call(request: pytest.FixtureRequest) -> None:
    """If this passes on asyncio, anyio is mended there, and `cancel_again` can go one day."""
    if sniffio.current_async_library() == "asyncio":
        request.applymarker(pytest.mark.xfail(strict=False, reason="a fault of anyio"))
    assert await from_thread_run.outcome() == "cancelled"
