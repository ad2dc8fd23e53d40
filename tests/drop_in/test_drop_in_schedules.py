"""The drop-in streamer under any schedule of puts, waits, cancellations and ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anystreamer import AsyncTextIteratorStreamer, GenerationStopped

from ..helpers.scripted import PATIENCE, until

pytestmark = pytest.mark.timeout(60 + settings().max_examples // 4)

LETTERS = "abcdefghijklmnopqrstuvwxyz"

OPERATIONS = st.sampled_from(
    [
        *["put"] * 4,
        *["receive"] * 4,
        *["receive in a cancelled scope"] * 2,
        *["receive without time"] * 2,
        *["receive now"] * 2,
        *["cancel a receive beside a put"] * 2,
        *["end"] * 2,
        *["pass"] * 2,
        "other thread",
        "stop",
        "close",
    ]
)


class Letters:
    """Each id is a letter of its own."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        return "".join(LETTERS[each % len(LETTERS)] for each in token_ids)


class Thread:
    """A thread that does what it is given, in order."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._left = 0
        self.raised: list[BaseException] = []

    def do(self, work: Callable[[], object]) -> None:
        self._left += 1
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as exc:
                self.raised.append(exc)
            self._left -= 1

    async def has_done_all(self) -> None:
        await until(lambda: not self._left)

    def end(self) -> None:
        self._work.put(None)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@contextmanager
def threads() -> Iterator[list[Thread]]:
    both = [Thread(), Thread()]
    try:
        yield both
    finally:
        for each in both:
            each.end()


class Schedule:
    """A streamer, led step by step; and what is known of its texts."""

    def __init__(self, streamer: AsyncTextIteratorStreamer, both: list[Thread]) -> None:
        self.streamer = streamer
        self.threads = both
        self.put = 0  # letters
        self.texts = [""]  # what was put, text by text
        self.received = [""]
        self.stopped = self.closed = False

    @property
    def has_something(self) -> bool:
        if self.closed:
            return True
        at = len(self.received) - 1
        return at < len(self.texts) - 1 or len(self.received[at]) < len(self.texts[at])

    async def do(self, work: Callable[[], object]) -> None:
        self.threads[0].do(work)
        await self.threads[0].has_done_all()

    async def receive(self) -> None:
        try:
            self.received[-1] += await anext(self.streamer)
        except StopAsyncIteration:
            self.received.append("")
        except anyio.ClosedResourceError:
            assert self.closed

    def receive_now(self) -> None:
        try:
            item = self.streamer.text_queue.get_nowait()
        except (queue.Empty, anyio.ClosedResourceError):
            return
        if item is None:
            self.received.append("")
        else:
            self.received[-1] += item

    async def cancel_a_receive_beside_a_put(self) -> None:
        scope = CancelScope()

        async def receive() -> None:
            with scope:
                await self.receive()

        async with create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(self.put_letter)
            for _ in range(self.put % 4):
                await checkpoint()
            scope.cancel()

    async def put_letter(self) -> None:
        token_id = self.put
        self.put += 1
        if not self.closed:
            self.texts[-1] += LETTERS[token_id % len(LETTERS)]
        await self.do(lambda: self.streamer.put([token_id]))
        if self.stopped and not self.closed:  # the step that a stop finds is the last one
            self.texts.append("")

    async def end(self) -> None:
        if self.texts[-1]:
            if not self.closed:
                self.texts.append("")
            await self.do(self.streamer.end)

    async def follow(self, operations: list[str]) -> None:
        for operation in operations:
            match operation:
                case "put":
                    await self.put_letter()
                case "end":
                    await self.end()
                case "other thread":
                    self.threads.reverse()
                case "receive" if self.has_something:
                    with anyio.fail_after(PATIENCE):
                        await self.receive()
                case "receive in a cancelled scope":
                    with CancelScope() as scope:
                        scope.cancel()
                        await self.receive()
                case "receive without time":
                    with anyio.move_on_after(0):
                        await self.receive()
                case "receive now":
                    self.receive_now()
                case "cancel a receive beside a put":
                    await self.cancel_a_receive_beside_a_put()
                case "pass":
                    await checkpoint()
                case "stop":
                    self.streamer.stop()
                    self.stopped = True
                case "close":
                    await self.streamer.aclose()
                    self.closed = True
            self.check()
        await self.drain()

    async def drain(self) -> None:
        await self.end()
        with anyio.fail_after(PATIENCE):
            while not self.closed and len(self.received) < len(self.texts):
                await self.receive()
        self.check()
        if not self.closed:
            assert self.received == self.texts, "an item was lost"
        for thread in self.threads:
            assert all(type(each) is GenerationStopped for each in thread.raised), thread.raised
        assert self.stopped or self.closed or not any(each.raised for each in self.threads)

    def check(self) -> None:
        """All that was received was put, in order, each once."""
        for received, put in zip(self.received[:-1], self.texts, strict=False):
            assert received == put
        at = len(self.received) - 1
        assert self.texts[at].startswith(self.received[at])


@given(operations=st.lists(OPERATIONS, max_size=20))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_any_schedule_of_the_drop_in_loses_and_doubles_nothing(operations: list[str]) -> None:
    with threads() as both:
        async with AsyncTextIteratorStreamer(Letters()) as streamer:
            await Schedule(streamer, both).follow(operations)
