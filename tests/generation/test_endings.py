"""Every way to end a stream, in every phase of it, on every loop.

Each cell of the table leads a `ScriptedModel` to its phase, ends the stream there, and looks at
what the promises speak of: the steps computed after the end, the thread, the error, the finish
reason, the text. A cell that cannot exist is in `IMPOSSIBLE`, with the reason.

The phases are real places: the model halts at a gate, or the worker's stack says where it stands.
Nothing waits for time to pass, but for the deadlines' own clocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import sys
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from types import CodeType, FrameType
from typing import Any

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter, create_task_group, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason, GenerationTimeout, TextStream, Timeouts, stream_text
from anystreamer.testing import Gate, ScriptedModel, ScriptedTokenizer

from ..conftest import LOOPS
from ..helpers.inside import (
    CROSSING,
    WAITING_FOR_SPACE,
    hold_back,
    pieces_of,
    share_pieces,
    state_of,
)
from ..helpers.scripted import PATIENCE, DeadlineClock, until

WAYS = {
    "end": "the model comes to its own end",
    "break": "the body leaves the block",
    "raise": "the body raises",
    "cancel": "another task cancels the scope around the block",
    "move_on_after": "the deadline of the caller's scope passes",
    "fail_after": "the same, and the caller gets a TimeoutError",
    "timeout": "the deadline of `timeout=` passes",
    "stop": "another task calls `stop()`",
    "stop-thread": "another thread calls `stop()`",
    "aclose": "the consumer closes the stream",
    "read": "the consumer calls `read()` under a cancelled scope",
    "native": "`task.cancel()`",
    "native-all": "the same for every task that the stream has, the worker's host too",
    "error": "the model raises; while the prompt is encoded, the tokenizer",
    "error-unread": "the same, while the body does something else and then leaves",
}
PHASES = {
    "encoding": "the tokenizer encodes the prompt",
    "queued": "another generation has the turn",
    "starting": "the turn has come in the same moment, and the worker has not begun",
    "prefill": "no token has been made",
    "decoding": "the consumer has all, and waits for the next token",
    "full": "the worker waits for room in the buffer",
    "delivering": "the worker brings a piece over, and waits for the loop",
    "holding": "the worker holds pieces for its next crossing",
    "finishing": "the last token is made, and generate() has not returned",
}
LOOP_NAMES = [str(loop.id) for loop in LOOPS]

# (way, phase, loop), each a pattern: why there is no such cell.
IMPOSSIBLE = {
    ("native*", "*", "trio"): "trio's tasks cannot be cancelled, only its scopes",
    **{
        (way, "encoding", "*"): "the block is entered when the prompt is encoded: there is no body "
        "and no stream yet"
        for way in ("break", "raise", "stop*", "aclose", "read", "error-unread")
    },
    **{
        ("end", phase, "*"): "the model has not begun, so it cannot come to its end"
        for phase in ("encoding", "queued", "starting")
    },
    **{
        ("error*", phase, "*"): "the model has not begun, so it cannot raise"
        for phase in ("queued", "starting")
    },
    **{
        ("error*", phase, "*"): "the model's thread is in our put(), so it is not the model that "
        "can raise"
        for phase in ("full", "delivering")
    },
}


def reasons(cell: tuple[str, str, str]) -> list[str]:
    return [
        reason for patterns, reason in IMPOSSIBLE.items() if all(map(fnmatchcase, cell, patterns))
    ]


def cells() -> Iterator[Any]:
    for loop in LOOPS:
        for way, phase in itertools.product(WAYS, PHASES):
            if not reasons((way, phase, str(loop.id))):
                yield pytest.param(*loop.values, way, phase, id=f"{way}-{phase}-{loop.id}")


# -- the model ---------------------------------------------------------------------------------


class Model(ScriptedModel):
    """A scripted model that knows its thread and whether it is in ``generate()``.

    It may halt, and fail, when its last token is made and ``generate()`` has not returned.
    """

    def __init__(
        self, script: list[Any], *, at_end: Gate | None = None, fails: BaseException | None = None
    ) -> None:
        super().__init__(script)
        self.at_end = at_end
        self.fails = fails
        self.inside = False
        self.thread = 0

    def generate(self, **kwargs: Any) -> Any:
        self.inside = True
        self.thread = threading.get_ident()
        try:
            output = super().generate(**kwargs)
            if self.at_end is not None:
                self.at_end.wait()
            if self.fails is not None:
                raise self.fails
            return output
        finally:
            self.inside = False

    def stands_in(self, code: CodeType) -> bool:
        """Whether its thread is in a function of ours."""
        frame: FrameType | None = sys._current_frames().get(self.thread)
        while frame is not None:
            if frame.f_code is code:
                return True
            frame = frame.f_back
        return False


class Tokenizer(ScriptedTokenizer):
    """A model's tokenizer, that halts at a gate and can then fail."""

    def __init__(self, model: Model, gate: Gate | None, fails: BaseException | None) -> None:
        share_pieces(self, pieces_of(model.tokenizer))
        self.gate = gate
        self.fails = fails
        self.inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inside = True
        try:
            if self.gate is not None:
                self.gate.wait()
            if self.fails is not None:
                raise self.fails
            return super().__call__(*args, **kwargs)
        finally:
            self.inside = False


class Fault(Exception):
    """What a body raises, or a model."""


# Far more than one step.
MORE = ["more "] * 50

# Ways in which the consumer's own task ends it; in the others it waits for what comes.
OWN = {"break", "raise", "aclose", "read", "error-unread"}
# After these the consumer is given all that was computed.
KEEPS_ALL = {"end", "timeout", "stop", "stop-thread", "error"}
# The block raises nothing and its scope has caught the cancellation.
CAUGHT = {"cancel", "move_on_after", "read"}


class Cell:
    """One stream, led to its phase and ended there; and what came of it."""

    def __init__(self, way: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.way = way
        self.phase = phase
        self.fault = Fault(f"{way} while {phase}")
        self.here = Gate()  # it is in its phase
        self.later = Gate()  # where the model halts if it goes on from there
        self.limiter = CapacityLimiter(1)
        self.clock = DeadlineClock(monkeypatch)
        self.ended = anyio.Event()
        self.resume = anyio.Event()
        self.scope = CancelScope()
        self.stream: TextStream | None = None
        self.received: list[str] = []
        self.error: BaseException | None = None
        self.task: Any = None
        self.others: set[Any] = set()  # tasks that have nothing to do with it
        self.at_end = 0  # steps computed when it was ended
        self.left = False  # the block has been left, and the worker before it
        self.model = self._model()
        fails = self.fault if (way, phase) == ("error", "encoding") else None
        gate = self.here if phase == "encoding" else None
        self.tokenizer = Tokenizer(self.model, gate, fails)
        if phase == "holding":
            hold_back(monkeypatch, PATIENCE)  # longer than the test takes

    def _model(self) -> Model:
        """What it plays: up to its phase, and then what the way to end wants of it."""
        rest: list[Any] = MORE
        if self.way == "end":
            rest = []
        elif self.way in ("error", "error-unread"):
            rest = [self.fault]
        match self.phase:
            case "encoding" | "queued" | "starting":
                return Model([self.later, *rest])
            case "prefill":
                return Model([self.here, *rest])
            case "decoding":
                return Model(["a", "b", self.here, *rest])
            case "full":
                return Model(["a", self.later, *rest])
            case "delivering":
                return Model([self.here, "a", self.later, *rest])
            case "holding":
                return Model(["a", "b", "c", self.here, *rest])
            case _:
                fails = self.fault if self.way in ("error", "error-unread") else None
                return Model(["a", "b"], at_end=self.here, fails=fails)

    # -- the consumer

    async def consume(self) -> None:
        scope: contextlib.AbstractContextManager[CancelScope]
        if self.way == "fail_after":
            scope = anyio.fail_after(math.inf)
        elif self.way == "move_on_after":
            scope = anyio.move_on_after(math.inf)
        else:
            scope = CancelScope()
        try:
            with scope as self.scope:
                try:
                    async with self.opened() as self.stream:
                        await self.body(self.stream)
                finally:
                    assert not self.model.inside, "not joined"
                    assert not self.tokenizer.inside, "not joined"
                    self.left = True
        except AssertionError:
            raise
        except (Exception, get_cancelled_exc_class()) as exc:
            self.error = exc

    def opened(self) -> Any:
        timeout: Timeouts | float | None = None
        if self.way == "timeout":
            if self.phase == "queued":
                timeout = Timeouts(queued=0.01)
            else:  # encoding is not interrupted, and its time counts in this alone
                timeout = 1e-6 if self.phase == "encoding" else 1e6
        return stream_text(
            self.model,
            self.tokenizer,
            "hi",
            timeout=timeout,
            max_buffer_size=1 if self.phase == "full" else math.inf,
            limiter=self.limiter,
        )

    async def body(self, stream: TextStream) -> None:
        if self.way not in OWN:
            await self.wait_for_the_end(stream)
            return
        await self.arrive()
        if self.phase == "starting":
            self.limiter.release_on_behalf_of(self)
        self.note_the_end()
        match self.way:
            case "raise":
                raise self.fault
            case "aclose":
                await stream.aclose()
                assert not self.model.inside
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.receive()
            case "read":
                self.scope.cancel()
                await stream.read()
            case "error-unread":
                await until(lambda: not self.model.inside)

    async def wait_for_the_end(self, stream: TextStream) -> None:
        if self.phase in ("full", "holding"):  # one that waits for text would take it
            await self.resume.wait()
        async for piece in stream:
            self.received.append(piece)

    # -- how it comes to its phase

    async def arrive(self) -> None:
        """Come to the phase. There is no checkpoint between the last look at it and the return."""
        match self.phase:
            case "encoding":
                await self.here.reached()
                assert self.stream is None
                assert not self.model.calls
            case "queued" | "starting":
                # The queue's own deadline can pass before this task runs again: the stream has then
                # been in the queue and left it.
                can_have_left = (self.way, self.phase) == ("timeout", "queued")
                await until(
                    lambda: self.limiter.statistics().tasks_waiting or (can_have_left and self.left)
                )
                assert not self.model.calls
            case "prefill":
                await self.here.reached()
                assert self.model.steps == 0
            case "decoding" | "finishing":
                if self.way in OWN:
                    assert self.stream is not None
                    while len("".join(self.received)) < 2:
                        self.received.append(await self.stream.receive())
                await self.here.reached()
                await until(lambda: len("".join(self.received)) == 2)
            case "full":
                await until(lambda: self.model.stands_in(WAITING_FOR_SPACE))
            case "delivering":
                await self.here.reached()
                await settled()
                self.here.open()
                deadline = time.monotonic() + PATIENCE
                while not self.model.stands_in(CROSSING):
                    assert time.monotonic() < deadline
                    time.sleep(0.0001)  # so that the loop cannot let it go
            case "holding":
                await self.here.reached()
                assert self.stream is not None
                assert len(state_of(self.stream).pending) == 2

    # -- what ends it

    async def disturb(self) -> None:
        """End it from outside, and let the model go on when every task has seen that."""
        try:
            if self.way in OWN:
                await self.ended.wait()
            else:
                await self.arrive()
                if self.phase != "delivering":
                    await settled()  # the consumer too is where it waits
                self.end()
            await settled()
            if self.phase == "queued":
                await until(lambda: self.left)
                self.limiter.release_on_behalf_of(self)
                await settled()
        finally:
            self.resume.set()
            self.here.open()
            self.later.open()

    def end(self) -> None:
        self.note_the_end()
        match self.way:
            case "cancel":
                self.scope.cancel()
            case "move_on_after" | "fail_after":
                self.scope.deadline = anyio.current_time()
            case "timeout":
                self.clock.pass_all()
            case "stop":
                assert self.stream is not None
                self.stream.stop()
            case "stop-thread":
                assert self.stream is not None
                thread = threading.Thread(target=self.stream.stop)
                thread.start()
                thread.join()
            case "native":
                self.task.cancel()
            case "native-all":
                for task in asyncio.all_tasks() - self.others:
                    task.cancel()
        if self.phase == "starting":
            self.limiter.release_on_behalf_of(self)

    def note_the_end(self) -> None:
        self.at_end = self.model.steps
        self.ended.set()

    # -- all of it

    async def run(self) -> None:
        if self.phase in ("queued", "starting"):
            self.limiter.acquire_on_behalf_of_nowait(self)
        with anyio.fail_after(PATIENCE):
            if self.way in ("native", "native-all"):
                self.others = asyncio.all_tasks()
                self.task = asyncio.create_task(self.consume())
                await self.disturb()
                await self.task
            else:
                async with create_task_group() as tg:
                    tg.start_soon(self.disturb)
                    await self.consume()

    def check(self) -> None:
        assert self.left
        self.check_error()
        self.check_steps()
        if self.stream is not None:
            self.check_text(self.stream)
            assert self.stream.finish_reason == self.expected_reason
        assert self.limiter.statistics().borrowed_tokens == 0

    def check_error(self) -> None:
        way, error = self.way, self.error
        if way in ("raise", "error", "error-unread"):
            assert error is self.fault
            assert not hasattr(error, "__notes__")
            assert error.__cause__ is None
            assert error.__context__ is None
        elif way in ("native", "native-all"):
            assert type(error) is get_cancelled_exc_class()
        elif way == "fail_after":
            assert type(error) is TimeoutError
        elif way == "timeout" and self.phase != "finishing":
            assert type(error) is GenerationTimeout
            assert error.phase == ("queued" if self.phase == "queued" else "total")
        else:
            assert error is None
        assert self.scope.cancelled_caught == (way in CAUGHT or way == "fail_after")

    def check_steps(self) -> None:
        more = self.model.steps - self.at_end
        if self.way == "end":
            assert self.stream is not None
            assert self.stream.output == [[*map(ord, "hi"), *self.stream.token_ids]]
        elif self.phase in ("encoding", "queued"):
            assert not self.model.calls
        elif self.phase == "starting" and self.way not in OWN | {"timeout"}:
            assert not self.model.calls  # the turn came after the end, though in the same tick
        elif self.phase == "finishing":
            assert more == 0
        else:
            assert more <= 1

    def check_text(self, stream: TextStream) -> None:
        assert stream.text == "".join(self.received)
        assert (
            self.model.tokenizer.decode(stream.token_ids, skip_special_tokens=True) == stream.text
        )
        assert stream.usage is not None
        assert stream.usage.completion_tokens == len(stream.token_ids)
        assert stream.usage.computed_tokens == self.model.steps
        if self.way in KEEPS_ALL:
            assert len(stream.token_ids) == self.model.steps
        else:
            assert len(stream.token_ids) <= self.at_end
            if self.phase in ("decoding", "finishing"):
                assert stream.text == "ab"

    @property
    def expected_reason(self) -> FinishReason:
        match self.way:
            case "error" | "error-unread":
                return FinishReason.ERROR
            case "end":
                return FinishReason.EOS
            case "timeout" | "stop" | "stop-thread" if self.phase == "finishing":
                return FinishReason.EOS  # it had ended by itself, and all of it was given
            case "timeout":
                return FinishReason.TIMEOUT
            case "stop" | "stop-thread":
                return FinishReason.STOPPED
            case _ if self.phase == "finishing" and self.has_all:
                return FinishReason.EOS  # it had ended by itself, and all of it was delivered
            case _:
                return FinishReason.CANCELLED

    @property
    def has_all(self) -> bool:
        """Whether the token that ended the text, which has no text, was delivered too."""
        assert self.stream is not None
        return len(self.stream.token_ids) == self.model.steps


async def settled() -> None:
    """Wait until every other task waits. On asyncio a first look that fails costs 0.1 s."""
    for _ in range(20):
        await checkpoint()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("anyio_backend", "way", "phase"), list(cells()), indirect=["anyio_backend"]
)
async def test_it_ends_as_promised(way: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(way, phase, monkeypatch)
    await cell.run()
    cell.check()


def test_the_table_of_impossible_cells_has_no_stale_entries() -> None:
    """Each names cells of the table, alone, and `arrive` sees to it that its reason is true."""
    table = list(itertools.product(WAYS, PHASES, LOOP_NAMES))
    named = [
        (patterns, cell)
        for patterns in IMPOSSIBLE
        for cell in table
        if all(map(fnmatchcase, cell, patterns))
    ]
    assert {patterns for patterns, _ in named} == IMPOSSIBLE.keys()
    left_out = [cell for _, cell in named]
    assert len(left_out) == len(set(left_out))
    assert len(table) == len(left_out) + len(list(cells()))
