"""Thousands of streams with faults of all kinds, one after another and side by side: nothing piles
up. What each of them must be is asserted as well.

The short run is in every test run; 10,000 streams on each loop are for ``nox -s soak``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import sniffio
from anyio import CancelScope, CapacityLimiter, create_task_group, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason, GenerationTimeout, TextStream, Timeouts, stream_text
from anystreamer.testing import ScriptedModel, ScriptedTokenizer

from ..helpers.levels import Level

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("asyncio_complains_of_nothing")]

TASKS = 8  # that open streams, each one after another

WAYS = [
    "end",
    "break",
    "raise",
    "cancel",
    "deadline",
    "timeout",
    "stop",
    "stop-thread",
    "aclose",
    "read",
    "native",
    "error",
    "tokenizer",
]


class Fault(Exception):
    """What a body, a model or a tokenizer raises."""


class Tokenizer(ScriptedTokenizer):
    """A model's, that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


class Soak:
    """Streams with faults, and how they ended."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.limiter = CapacityLimiter(2)
        self.ways = WAYS
        if sniffio.current_async_library() == "trio":
            self.ways = [way for way in WAYS if way != "native"]
        self.endings: Counter[str] = Counter()

    async def streams(self, count: int) -> None:
        """Open so many, by several tasks at once."""
        numbers = iter(range(count))

        async def some() -> None:
            for _ in numbers:
                await Fated(self).run()

        async with create_task_group() as tg:
            for _ in range(TASKS):
                tg.start_soon(some)


class Fated:
    """One stream, its model and what is in store for it."""

    def __init__(self, soak: Soak) -> None:
        self.rng = rng = soak.rng
        self.soak = soak
        self.way = rng.choice(soak.ways)
        self.fault = Fault(self.way)
        self.pieces = [f"{number} " for number in range(rng.choice([0, 1, 3, 20]))]
        self.scope = CancelScope()
        self.model = self._model()
        self.stream: TextStream | None = None
        self.received: list[str] = []
        self.unread = self.way == "error" and rng.random() < 0.3

    def _model(self) -> ScriptedModel:
        rng = self.rng
        script: list[Any] = [*self.pieces]
        for _ in range(rng.choice([0, 0, 1, 3])):
            script.insert(rng.randrange(len(script) + 1), rng.choice([0, 1e-4, 2e-3]))
        if self.way == "error":
            script.insert(rng.randrange(len(script) + 1), self.fault)
        return ScriptedModel(script, delay=rng.choice([0, 0, 1e-4]))

    async def run(self) -> None:
        error: BaseException | None = None
        try:
            if self.way == "native":
                task = asyncio.create_task(self.consume())
                await self.pause()
                task.cancel()
                await task
            else:
                await self.consume()
        except AssertionError:
            raise
        except (Exception, get_cancelled_exc_class()) as exc:
            error = exc
        self.check(error)

    async def consume(self) -> None:
        try:
            with self.scope:
                async with create_task_group() as tg:
                    try:
                        await self.open(tg)
                    except (Fault, GenerationTimeout) as exc:  # the group would wrap it
                        raised = exc
                    else:
                        return
                raise raised
        finally:
            assert not self.model.is_generating, "left behind"

    async def open(self, tg: Any) -> None:
        rng = self.rng
        timeout: float | Timeouts | None = None
        if self.way == "timeout":
            seconds = rng.random() * 0.003 + 1e-9
            phase = rng.choice(["queued", "first_token", "between_tokens", "total"])
            timeout = Timeouts(**{phase: seconds})
        if self.way == "deadline":
            self.scope.deadline = anyio.current_time() + rng.random() * 0.005
        if self.way == "cancel":
            tg.start_soon(self.disturb)
        failing = self.way == "tokenizer"
        async with stream_text(
            self.model,
            Tokenizer(self.fault) if failing else self.model.tokenizer,
            "hi",
            timeout=timeout,
            max_buffer_size=rng.choice([1, 2, math.inf, math.inf]),
            limiter=rng.choice([None, self.soak.limiter]),
        ) as self.stream:
            await self.read(self.stream, tg)

    async def read(self, stream: TextStream, tg: Any) -> None:
        rng = self.rng
        if self.way in ("stop", "stop-thread"):
            tg.start_soon(self.disturb)
        await self.pause()
        if self.unread:
            return
        if self.way == "read":
            self.scope.cancel()
            await stream.read()
        count = rng.choice([0, 1, 5])
        async for piece in stream:
            self.received.append(piece)
            await self.pause()
            count -= 1
            if count <= 0 and self.way in ("break", "raise", "aclose"):
                break
        if self.way == "raise":
            raise self.fault
        if self.way == "aclose":
            await stream.aclose()

    async def disturb(self) -> None:
        await self.pause()
        if self.way == "cancel":
            self.scope.cancel()
        elif self.stream is not None:
            if self.way == "stop":
                self.stream.stop()
            else:
                thread = threading.Thread(target=self.stream.stop)
                thread.start()
                thread.join()

    async def pause(self) -> None:
        for _ in range(self.rng.choice([0, 0, 0, 1, 5, 50])):
            await checkpoint()

    # -- what must be true of it

    def check(self, error: BaseException | None) -> None:
        assert not self.model.is_generating
        if error is None:
            assert self.way not in ("raise", "tokenizer")
        elif isinstance(error, Fault):
            assert error is self.fault
            assert self.way in ("raise", "error", "tokenizer")
        elif isinstance(error, GenerationTimeout):
            assert self.way == "timeout"
        else:
            assert self.way == "native"
        stream = self.stream
        self.soak.endings[self.way] += 1
        if stream is None:
            assert self.way in ("native", "cancel", "deadline", "tokenizer")
            return
        text = "".join(self.pieces)
        assert stream.text == "".join(self.received)
        assert text.startswith(stream.text)
        assert (
            self.model.tokenizer.decode(stream.token_ids, skip_special_tokens=True) == stream.text
        )
        assert stream.usage is not None
        assert len(stream.token_ids) <= stream.usage.computed_tokens == self.model.steps
        reason = stream.finish_reason
        assert reason is not None
        self.soak.endings[reason] += 1
        if self.way == "end":
            assert reason is FinishReason.EOS
        if reason is FinishReason.EOS:
            assert stream.text == text
        if self.way == "error" and not self.unread:
            assert reason is FinishReason.ERROR
        if reason is FinishReason.ERROR:
            assert self.way == "error"
            assert error is self.fault
        assert (reason is FinishReason.TIMEOUT) == isinstance(error, GenerationTimeout)
        if self.unread:
            return
        if reason in (FinishReason.STOPPED, FinishReason.TIMEOUT, FinishReason.ERROR):
            assert len(stream.token_ids) == self.model.steps


@pytest.fixture
def traced(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.ERROR, logger="asyncio")  # its slow callbacks would pile up in there
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.heavy
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "streams",
    [300, pytest.param(10_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])],
)
async def test_nothing_piles_up(streams: int) -> None:
    soak = Soak(streams)
    threads = threading.active_count()
    levels: list[Level] = []
    for _ in range(10):
        await soak.streams(streams // 10)
        levels.append(await Level.now())
        print(levels[-1])
    print(dict(soak.endings))
    assert set(soak.ways) <= set(soak.endings)
    first, last = levels[0], levels[-1]
    # A native cancellation may leave a worker before the loop knows that its thread is idle.
    assert max(level.threads for level in levels) <= threads + 2 * TASKS
    assert last.files <= first.files
    assert last.tasks == first.tasks
    # A thread of the pool has about 50. Apart from that, much less than one for each stream.
    of_threads = 50 * max(0, last.threads - first.threads)
    assert last.objects - first.objects < of_threads + 120 + streams / 100
    assert last.traced - first.traced < 2**17
    assert last.resident - first.resident < 2**23
