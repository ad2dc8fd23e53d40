"""Work that has the only turn, and waits for code that needs it: refused, in place of a hang."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter, create_task_group, to_thread

from anystreamer import Emit, Stopping, Worker, open_engine, open_worker, stream_from_thread, sync
from anystreamer.sync import SyncEngine, SyncWorker
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PATIENCE, until

REFUSED = r"would wait for itself"


async def items_of(block: Any) -> list[Any]:
    async with block as stream:
        return [item async for item in stream]


async def call(worker: Worker) -> object:
    return await worker.run(int)


async def open_stream(worker: Worker) -> object:
    return await items_of(worker.stream_iterable(lambda: [0]))


async def call_in_a_task_of_its_own(worker: Worker) -> object:
    results: list[object] = []

    async def work() -> None:
        async with create_task_group() as inner:
            inner.start_soon(collect)

    async def collect() -> None:
        with pytest.raises(RuntimeError, match=REFUSED):
            await call(worker)
        results.append(0)

    async with create_task_group() as tasks:
        tasks.start_soon(work)
    assert results == [0]
    raise RuntimeError("it would wait for itself")


def waits_for(func: Callable[[Any], Awaitable[object]], given: Any) -> Callable[..., object]:
    """A producer whose result is what that function returns in the event loop."""

    def produce(emit: Emit[int], should_stop: Stopping) -> object:
        return should_stop.wait_for(func, given)

    return produce


async def result_of(block: Any) -> object:
    with anyio.fail_after(PATIENCE):
        async with block as stream:
            async for _ in stream:
                pass
        return stream.result


@pytest.mark.parametrize("use", [call, open_stream, call_in_a_task_of_its_own])
async def test_a_producer_that_waits_for_its_only_thread(
    use: Callable[[Worker], Awaitable[object]],
) -> None:
    async with open_worker(name="database") as worker:
        with pytest.raises(RuntimeError, match=REFUSED):
            await result_of(worker.stream_from_thread(waits_for(use, worker)))
        with anyio.fail_after(PATIENCE):  # it goes on
            assert await worker.run(int) == 0


@pytest.mark.parametrize("use", [call, open_stream])
async def test_a_producer_that_waits_for_another_thread(
    use: Callable[[Worker], Awaitable[object]],
) -> None:
    async with open_worker() as one, open_worker() as other, open_worker(threads=2) as two:
        for mine, its in ((one, other), (two, two), (one, two), (two, one)):
            assert await result_of(mine.stream_from_thread(waits_for(use, its))) in (0, [0])


async def test_a_task_that_the_producer_does_not_wait_for() -> None:
    """It inherits the context of the producer's call, and has its turn when the producer ends."""
    results: list[int] = []
    let_go = threading.Event()

    async def use(worker: Worker) -> None:
        results.append(await worker.run(int))

    async with open_worker() as worker, create_task_group() as tasks:

        async def begin(_: object) -> None:
            tasks.start_soon(use, worker)
            await until(lambda: worker.statistics().waiting)  # while the producer waits for us

        def produce(emit: Emit[int], should_stop: Stopping) -> None:
            should_stop.wait_for(begin, None)
            let_go.wait(PATIENCE)

        async with worker.stream_from_thread(produce) as stream:
            await until(lambda: worker.statistics().waiting)
            tasks.start_soon(use, worker)
            let_go.set()
            assert [item async for item in stream] == []
    assert results == [0, 0]


@pytest.mark.parametrize("tokens", [1, 2])
async def test_a_producer_that_waits_for_the_turn_of_its_limiter(tokens: int) -> None:
    limiter = CapacityLimiter(tokens)

    async def inner(_: object) -> object:
        return await items_of(stream_from_thread(lambda emit, _: emit(1), limiter=limiter))

    outer = stream_from_thread(waits_for(inner, None), limiter=limiter)
    if tokens == 2:
        assert await result_of(outer) == [1]
    else:
        with pytest.raises(RuntimeError, match=f"turn of its limiter.*{REFUSED}"):
            await result_of(outer)
    assert await result_of(stream_from_thread(lambda emit, _: None, limiter=limiter)) is None


# -- callbacks of generate()


class Asks:
    """A stopping criterion that asks a model by a function, and keeps what came of it."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self.error: BaseException | None = None
        self.text: str | None = None

    def __call__(self, *_: object) -> bool:
        try:
            self.text = self._ask()
        except BaseException as exc:
            self.error = exc
        return True


async def test_a_callback_that_asks_its_own_engine() -> None:
    model, other = ScriptedModel(["a"]), ScriptedModel(["b"])
    async with (
        open_engine(model, model.tokenizer) as engine,
        open_engine(other, other.tokenizer) as second,
    ):

        def ask(engine: Any) -> str:
            with SyncEngine(engine).stream_text("Hi") as stream:
                return stream.read()

        with anyio.fail_after(PATIENCE):
            own, others = Asks(lambda: ask(engine)), Asks(lambda: ask(second))
            for each in (own, others):
                await items_of(engine.stream_text("Hi", stopping_criteria=[each]))
            assert "the only thread of the engine" in str(own.error)
            assert (others.text, others.error) == ("b", None)
            assert await items_of(engine.stream_text("Hi")) == ["a"]


def test_a_callback_that_asks_its_own_model() -> None:
    """In the loop that all synchronous callers share. An engine of that model needs its turn too"""
    model, other = ScriptedModel(["a"]), ScriptedModel(["b"])

    def ask(model: ScriptedModel) -> str:
        with sync.stream_text(model, model.tokenizer, "Hi") as stream:
            return stream.read()

    def ask_engine() -> str:
        with engine.stream_text("Hi") as stream:
            return stream.read()

    with sync.open_engine(model, model.tokenizer) as engine:
        for asks, shown in (
            (Asks(lambda: ask(model)), "turn of its limiter or its model"),
            (Asks(ask_engine), "turn of its limiter or its model"),
            (Asks(lambda: ask(other)), None),
        ):
            with sync.stream_text(model, model.tokenizer, "Hi", stopping_criteria=[asks]) as stream:
                stream.read()
            assert (shown in str(asks.error)) if shown else asks.text == "b"
        # The other way round: the engine's thread has the turn of the model.
        with engine.stream_text("Hi", stopping_criteria=[asks := Asks(lambda: ask(model))]) as own:
            own.read()
        assert "turn of its limiter or its model" in str(asks.error)
        assert ask(model) == ask_engine() == "a"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_producer_that_closes_its_own_worker(threads: int) -> None:
    """All threads have to end, so it makes no difference how many there are."""
    with sync.open_worker(threads=threads) as worker, sync.open_worker() as other:
        with pytest.raises(RuntimeError, match=REFUSED):
            worker.run(worker.close)
        worker.run(other.close)
        assert worker.run(int) == 0


def test_a_callback_that_closes_its_own_engine() -> None:
    model = ScriptedModel(["a"])

    def close() -> str:
        engine.close()
        return ""

    with sync.open_engine(model, model.tokenizer) as engine:
        asks = Asks(close)
        with engine.stream_text("Hi", stopping_criteria=[asks]) as stream:
            stream.read()
        assert REFUSED in str(asks.error)
        with engine.stream_text("Hi") as stream:
            assert stream.read() == "a"


async def test_a_thread_that_has_no_turn_waits_as_before() -> None:
    """A thread of anyio's, in which nothing of ours runs."""
    async with open_worker() as worker:

        def ask() -> int:
            return SyncWorker(worker).run(int)

        async with create_task_group() as tasks:
            with anyio.fail_after(PATIENCE):
                for _ in range(5):
                    tasks.start_soon(to_thread.run_sync, ask)
        assert await worker.run(int) == 0
