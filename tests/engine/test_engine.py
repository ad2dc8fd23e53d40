"""An engine that serves one request after the other: its queue, its thread, its end. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import (
    CancelScope,
    ClosedResourceError,
    create_task_group,
    fail_after,
    get_cancelled_exc_class,
)
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

import anystreamer
from anystreamer import (
    Engine,
    EngineBusy,
    EngineClosed,
    FinishReason,
    GenerationTimeout,
    Timeouts,
    open_engine,
    stream_text,
)
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.held import Held, each_way_to_let_go, let_go
from ..helpers.inside import is_idle, state_of
from ..helpers.scripted import NATIVE_LOOPS, PATIENCE, Native, until
from ..helpers.ways_out import (
    WayOut,
    cancelled_from_outside,
    closed,
    each_of,
    leaving,
    stopped,
)

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

ENDLESS = ["word "] * 20_000


def engine_of(model: ScriptedModel, **kwargs: Any) -> Any:
    return open_engine(model, model.tokenizer, **kwargs)


async def read(engine: Engine, prompt: str = "hi", **kwargs: Any) -> str:
    async with engine.stream_text(prompt, **kwargs) as stream:
        return await stream.read()


async def until_waiting(engine: Engine, number: int) -> None:
    """Wait until one runs and so many wait."""
    await until(lambda: engine.statistics().running)
    await until(lambda: engine.statistics().waiting == number)


def prompts(model: ScriptedModel) -> list[str]:
    """What the model was asked, in that order."""
    return ["".join(map(chr, call["input_ids"][0])) for call in model.calls]


# -- requests


async def test_requests_get_their_text_from_one_model() -> None:
    model = ScriptedModel(["a", "b", "c"])
    texts = []

    async def ask(prompt: str) -> None:
        texts.append(await read(engine, prompt))

    async with engine_of(model) as engine:
        assert isinstance(engine, Engine)
        async with create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, str(number))
    assert texts == ["abc"] * 20
    assert sorted(map(int, prompts(model))) == list(range(20))


async def test_a_request_is_all_that_stream_text_is() -> None:
    model = ScriptedModel(["one ", "two ", "STOP", "three"])
    async with engine_of(model) as engine:
        async with engine.stream_text(
            [{"role": "user", "content": "Hi!"}], stop="STOP", max_new_tokens=9
        ) as stream:
            chunks = [chunk async for chunk in stream]
        assert "".join(chunks) == stream.text == "one two "
        assert stream.finish_reason is FinishReason.STOP_STRING
        assert stream.stop_string == "STOP"
        assert stream.usage is not None
        assert stream.usage.completion_tokens == stream.usage.computed_tokens == 3
        assert stream.timing is not None
        assert stream.timing.queued is not None
        assert stream.output is not None


async def test_all_requests_run_in_one_thread_for_all_of_the_engine_s_life() -> None:
    threads = []

    @contextlib.contextmanager
    def note() -> Any:
        threads.append(threading.get_ident())
        yield
        threads.append(threading.get_ident())

    async with engine_of(ScriptedModel(["a"])) as engine:
        for _ in range(5):
            await read(engine, worker_context=note)
            # Threads that a pool would have taken in turn.
            async with create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(anyio.to_thread.run_sync, threading.Event().is_set)
    assert len(threads) == 10
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


variable: ContextVar[str] = ContextVar("variable", default="nobody's")


async def test_each_request_runs_in_its_caller_s_context_variables() -> None:
    seen = {}

    @contextlib.contextmanager
    def note() -> Any:
        name = variable.get()
        seen[name] = [name]
        variable.set("the model's")  # nobody else's
        yield
        seen[name].append(variable.get())

    async def ask(name: str) -> None:
        variable.set(name)
        await read(engine, worker_context=note)
        assert variable.get() == name

    async with engine_of(ScriptedModel(["a"])) as engine, create_task_group() as tasks:
        for name in ("one", "two", "three"):
            tasks.start_soon(ask, name)
    assert seen == {name: [name, "the model's"] for name in ("one", "two", "three")}


async def test_an_error_of_the_model_is_raised_and_the_next_request_served() -> None:
    error = ValueError("no")
    model = ScriptedModel(["a", "b", error])
    async with engine_of(model) as engine:
        for _ in range(3):
            async with engine.stream_text("hi") as stream:
                with pytest.raises(ValueError, match="no") as raised:
                    await stream.read()
                assert raised.value is error
                assert stream.text == "ab"
                assert stream.finish_reason is FinishReason.ERROR


async def test_an_error_of_the_encoding_is_raised_at_the_entry() -> None:
    model = ScriptedModel(["a"])
    async with engine_of(model) as engine:
        with pytest.raises(ValueError, match="empty"):
            engine.stream_text("")
        with pytest.raises(TypeError, match="given twice"):
            await read(engine, input_ids=[[1]])
        assert await read(engine) == "a"
    assert len(model.calls) == 1


# -- the queue


async def test_first_come_first_served_and_never_two_at_once() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model) as engine, create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(read, engine, str(number))
            await until_waiting(engine, number)
        gate.open()
    assert prompts(model) == [str(number) for number in range(10)]


async def test_the_position_in_the_queue_is_known() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model) as engine, contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(engine.stream_text("hi")) for _ in range(4)]
        await gate.reached()
        assert [stream.queue_position for stream in streams] == [None, 0, 1, 2]
        await streams[1].aclose()
        assert [stream.queue_position for stream in streams] == [None, None, 0, 1]
        gate.open()
        assert [await streams[index].read() for index in (0, 2, 3)] == ["a"] * 3
    async with stream_text(model, model.tokenizer, "hi") as stream:
        assert stream.queue_position is None


async def test_who_waits_for_the_model_alone_is_stopped_too() -> None:
    """A stream without the engine has the model, and the engine's queue is behind it."""
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model) as engine:
        async with stream_text(model, model.tokenizer, "first") as first:
            await gate.reached()
            async with engine.stream_text("second") as second:
                assert second.queue_position is None
                second.stop()
                assert await second.read() == ""
            gate.open()
            await first.read()
    assert prompts(model) == ["first"]


async def timed_out(stream: Any, outer: CancelScope) -> None:
    with pytest.raises(GenerationTimeout, match="queued"):
        await stream.read()


@each_of(cancelled_from_outside, closed, stopped, timed_out, leaving)
async def test_a_request_that_leaves_while_waiting_never_runs(way: WayOut) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model) as engine:
        async with engine.stream_text("first") as first:
            await gate.reached()
            timeout = Timeouts(queued=0.01) if way is timed_out else None
            with CancelScope() as scope:
                async with engine.stream_text("second", timeout=timeout) as second:
                    await way(second, scope)
            assert second.text == ""
            assert engine.statistics().waiting == 0
            gate.open()
            assert await first.read() == "a"
        reasons: dict[WayOut, FinishReason] = {
            stopped: FinishReason.STOPPED,
            timed_out: FinishReason.TIMEOUT,
        }
        assert second.finish_reason is reasons.get(way, FinishReason.CANCELLED)
        assert second.usage is not None
        assert second.usage.computed_tokens == 0
        assert await read(engine, "third") == "a"
    assert prompts(model) == ["first", "third"]


async def test_the_line_has_an_end_and_says_so_at_once() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model, max_waiting=2) as engine, create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(read, engine)
            await until_waiting(engine, number)
        for _ in range(3):
            with pytest.raises(EngineBusy, match="2 requests are waiting") as raised:
                await read(engine)
            assert raised.value.waiting == 2
        gate.open()
        await until(lambda: engine.statistics().running == 0)
        assert await read(engine) == "a"
    assert len(model.calls) == 4


async def test_nobody_waits_where_nobody_may() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model, max_waiting=0) as engine:
        async with engine.stream_text("hi") as stream:
            with pytest.raises(EngineBusy):
                await read(engine)
            gate.open()
            await stream.read()
        assert await read(engine) == "a"


async def test_streams_without_the_engine_take_turns_with_it() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with engine_of(model) as engine, create_task_group() as tasks:
        async with stream_text(model, model.tokenizer, "first") as stream:
            await gate.reached()
            tasks.start_soon(read, engine, "second")
            await until(lambda: engine.statistics().running)
            assert len(model.calls) == 1
            gate.open()
            await stream.read()
    assert prompts(model) == ["first", "second"]


async def test_a_consumer_that_never_reads_gives_way_to_who_waits() -> None:
    model = ScriptedModel(["a"] * 1_000)
    async with engine_of(model) as engine:
        async with engine.stream_text("hi", max_buffer_size=1) as held:
            await until(lambda: model.steps)
            for _ in range(20):
                await anyio.sleep(0.001)
            assert model.steps < 1_000
            assert await read(engine) == "a" * 1_000
            assert await held.read() == "a" * 1_000


# -- the end


@pytest.mark.parametrize("way", ["leaving", "raising", "cancelling"])
async def test_leaving_the_engine_ends_all_that_is_open(way: str) -> None:
    model = ScriptedModel(ENDLESS)
    told: list[tuple[str, Any]] = []
    entered: list[Any] = []

    async def ask() -> None:
        async with engine.stream_text("hi") as stream:
            entered.append(stream)
            with pytest.raises(EngineClosed):
                async for _ in stream:
                    pass
        told.append((stream.text, stream.finish_reason))

    error = KeyError("the body's")
    async with create_task_group() as tasks:
        with contextlib.suppress(KeyError), CancelScope() as scope:
            async with engine_of(model) as engine:
                for _ in range(5):
                    tasks.start_soon(ask)
                await until(lambda: model.steps > 3 and len(entered) == 5)
                if way == "raising":
                    raise error
                if way == "cancelling":
                    scope.cancel()
                    await checkpoint()
        steps = model.steps
        assert not model.is_generating
        assert way == "raising" or scope.cancelled_caught == (way == "cancelling")
    assert model.steps == steps
    assert len(model.calls) == 1
    assert [reason for _, reason in told] == [FinishReason.ERROR] * 5
    texts = sorted(len(text) for text, _ in told)
    assert texts == [0, 0, 0, 0, len("word ") * steps]
    with pytest.raises(EngineClosed):
        await read(engine)


async def test_the_body_s_error_comes_out_bare() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised:
        async with engine_of(ScriptedModel(["a"])) as engine:
            assert await read(engine) == "a"
            raise error
    assert raised.value is error
    assert error.__context__ is None


async def test_an_engine_that_nobody_uses_and_one_that_is_cancelled_at_once() -> None:
    async with engine_of(ScriptedModel(["a"])) as engine:
        pass
    assert repr(engine) == "<anystreamer.Engine closed, 0 running, 0 waiting>"
    with CancelScope() as scope:
        scope.cancel()
        async with engine_of(ScriptedModel(["a"])):
            await checkpoint()
    assert scope.cancelled_caught


async def test_a_cancelled_request_stops_the_model_within_a_step() -> None:
    gate = Gate()
    model = ScriptedModel(["a", "b", gate, *ENDLESS])
    async with engine_of(model) as engine:
        with CancelScope() as scope:
            async with create_task_group() as tasks, engine.stream_text("hi") as stream:

                @tasks.start_soon
                async def cancel() -> None:
                    await gate.reached()
                    scope.cancel()
                    # An engine is told by the block that is being left: the loop has to come to it.
                    with CancelScope(shield=True):
                        await until(lambda: state_of(stream).abandoned)
                    gate.open()

                await stream.read()
        assert not model.is_generating
        assert model.steps <= 3
        assert stream.finish_reason is FinishReason.CANCELLED
        assert await read(engine, max_new_tokens=2) == "ab"


# -- held across a yield (promise 12)


# trio says so to whoever drops a generator, whatever it holds.
@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
@each_way_to_let_go
async def test_a_stream_may_be_held_across_a_yield(way: str) -> None:
    model = ScriptedModel(ENDLESS)
    async with engine_of(model) as engine:
        for _ in range(10):
            held = Held(engine)
            generators = [held.tokens()]
            with CancelScope() as scope:  # the consumer's task stays sound
                assert await anext(generators[0])
                await let_go(generators, way)
                await until(lambda: not model.is_generating)
                await checkpoint()
            assert not scope.cancelled_caught
            (stream,) = held.streams
            await until(partial(getattr, stream, "finish_reason"))
            assert stream.finish_reason is FinishReason.CANCELLED
        assert engine.statistics().running == engine.statistics().waiting == 0
        with fail_after(PATIENCE):
            assert await read(engine, max_new_tokens=2) == "word word "


async def test_one_task_begins_a_generator_and_another_goes_on() -> None:
    model = ScriptedModel(["a", "b", "c"], delay=0.001)
    async with engine_of(model) as engine:
        tokens = Held(engine).tokens()
        pieces = [await anext(tokens)]

        async def go_on() -> None:
            pieces.extend([piece async for piece in tokens])

        async with create_task_group() as tasks:
            tasks.start_soon(go_on)
    assert "".join(pieces) == "abc"


async def test_a_generator_that_is_cancelled_in_a_scope_of_its_task() -> None:
    model = ScriptedModel(ENDLESS)
    async with engine_of(model) as engine:
        held = Held(engine)
        with CancelScope() as scope:
            async with contextlib.aclosing(held.tokens()) as tokens:
                async for _ in tokens:
                    scope.cancel()
        assert scope.cancelled_caught
        assert not model.is_generating
        await checkpoint()


async def test_generators_that_outlive_the_engine_get_an_error() -> None:
    model = ScriptedModel(ENDLESS)
    async with engine_of(model) as engine:
        tokens = Held(engine).tokens()
        assert await anext(tokens)
    with pytest.raises(EngineClosed):
        async for _ in tokens:
            pass


async def test_a_block_that_nobody_can_leave_any_more_stops_its_model() -> None:
    model = ScriptedModel(ENDLESS)
    async with engine_of(model) as engine:
        context = engine.stream_text("hi")
        stream = await context.__aenter__()
        assert await stream.receive()
        del context
        gc.collect()
        await until(lambda: not model.is_generating)
        assert await read(engine, max_new_tokens=1) == "word "
        with pytest.raises(ClosedResourceError):
            await stream.receive()


# -- native asyncio


@pytest.mark.parametrize("native", NATIVE_LOOPS)
def test_a_loop_that_ends_under_an_open_engine(native: Native) -> None:
    """Nobody leaves the block but the loop's end, which cancels each task natively."""
    rng = random.Random(0)
    model = ScriptedModel(ENDLESS)

    async def ask(engine: Engine) -> None:
        async with engine.stream_text("hi") as stream:
            async for _ in stream:
                pass

    async def serve(opened: list[Engine]) -> None:
        async with engine_of(model) as engine:
            opened.append(engine)
            await asyncio.sleep(PATIENCE)

    async def main() -> list[asyncio.Task[None]]:
        opened: list[Engine] = []
        tasks = [asyncio.create_task(serve(opened))]
        while not opened:
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask(opened[0])) for _ in range(3)]
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(rng.choice([0, 0, 0.0005]))
        return tasks

    for _ in range(30):
        tasks = native.run(main)
        assert not model.is_generating
        assert [task.cancelled() for task in tasks] == [True] * 4


@pytest.mark.parametrize("native", NATIVE_LOOPS)
def test_a_request_cancelled_natively_at_any_time(native: Native) -> None:
    model = ScriptedModel(["a", "b", "c"])
    rng = random.Random(0)

    async def main() -> None:
        async with engine_of(model) as engine:
            for _ in range(300):
                task = asyncio.create_task(read(engine))
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(rng.choice([0, 0, 0, 0.0002]))
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await task == "abc"
            assert engine.statistics().running == engine.statistics().waiting == 0
            assert await read(engine) == "abc"

    native.run(main)


@pytest.mark.parametrize("native", NATIVE_LOOPS)
def test_tasks_cancelled_natively_before_their_first_step(native: Native) -> None:
    """They never run, and nobody tells of it; the engine ends, and says so."""

    async def main() -> None:
        model = ScriptedModel(["a"])
        with pytest.raises(EngineClosed):
            async with engine_of(model) as engine:
                mine = asyncio.all_tasks()
                task = asyncio.create_task(read(engine))
                while len(tasks := asyncio.all_tasks() - mine - {task}) < 1:
                    await asyncio.sleep(0)
                for each in tasks:  # the request's
                    each.cancel()
                with pytest.raises((EngineClosed, asyncio.CancelledError)):
                    await task
                await asyncio.sleep(PATIENCE)

    async def all_at_once() -> None:
        async with engine_of(ScriptedModel(["a"])) as engine:
            asyncio.create_task(read(engine))  # noqa: RUF006
            await asyncio.sleep(0)
            for each in asyncio.all_tasks():
                each.cancel()
            await asyncio.sleep(PATIENCE)

    native.run(main)
    for _ in range(50):
        with pytest.raises(asyncio.CancelledError):
            native.run(all_at_once)


# -- loops and threads


async def test_another_event_loop_is_refused() -> None:
    async with engine_of(ScriptedModel(["a"])) as engine:

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                anyio.run(read, engine)

        await anyio.to_thread.run_sync(elsewhere)
        assert await read(engine) == "a"


def test_two_engines_on_two_loops_do_not_touch_each_other() -> None:
    model = ScriptedModel(["a", "b"], delay=0.0005)
    texts: list[str] = []

    async def main() -> None:
        async with engine_of(model) as engine:
            for _ in range(50):
                texts.append(await read(engine))

    threads = [
        threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["ab"] * 100


# -- statistics


async def test_what_an_engine_tells_of_itself() -> None:
    gate = Gate()
    model = ScriptedModel(["a", "b", gate, "c"])
    async with engine_of(model) as engine, create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read, engine)
        await gate.reached()
        await until(lambda: engine.statistics().waiting == 2)
        now = engine.statistics()
        assert (now.running, now.waiting, now.computed_tokens) == (1, 2, 2)
        assert now.cache_used is None
        assert now.total.count == 0
        gate.open()
        await until(lambda: engine.statistics().total.count == 3)
        now = engine.statistics()
        assert (now.running, now.waiting, now.computed_tokens) == (0, 0, 12)  # with EOS
        assert now.queued.count == now.first_token.count == 3
        assert now.between_tokens.count == 9
        assert 0 < now.tokens_per_second < math.inf
        assert now.prefill.count == 3
        assert now.prefill.sum == pytest.approx(now.first_token.sum - now.queued.sum)
        for histogram in (
            now.queued,
            now.prefill,
            now.first_token,
            now.between_tokens,
            now.total,
        ):
            assert len(histogram.counts) == len(histogram.bounds) + 1
            assert list(histogram.counts) == sorted(histogram.counts)
            assert histogram.sum > 0
        assert now.total.sum >= now.first_token.sum >= now.queued.sum


async def test_a_request_that_is_refused_has_not_ended() -> None:
    """What was late before its turn has: it was a request that waited."""
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with open_engine(model, model.tokenizer, context_length=20) as engine:
        for prompt in ("x" * 30, [{"role": "nobody"}]):
            with pytest.raises((ValueError, TypeError, KeyError)):
                async with engine.stream_text(prompt):
                    pass
            assert engine.statistics().total.count == 0
        async with engine.stream_text("hi") as first:
            await gate.reached()
            with pytest.raises(GenerationTimeout):
                async with engine.stream_text("hi", timeout=Timeouts(queued=0.001)) as late:
                    await late.read()
            assert engine.statistics().total.count == 1
            gate.open()
            await first.read()
        assert engine.statistics().total.count == 2


async def test_an_idle_engine_is_no_running_thread_in_the_process_s_statistics() -> None:
    async with engine_of(ScriptedModel(["a"])) as engine:
        await read(engine)
        await until(lambda: anystreamer.statistics().threads == 0)


# -- misuse


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"batching": "some"}, ValueError, "'none' or 'continuous'"),
        ({"max_waiting": -1}, ValueError, "max_waiting"),
        ({"max_waiting": 1.5}, TypeError, "max_waiting"),
        ({"max_waiting": True}, TypeError, "max_waiting"),
        ({"max_running": 0}, ValueError, "max_running"),
        ({"max_running": 2}, ValueError, "max_running"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(
    kwargs: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        engine_of(ScriptedModel(["a"]), **kwargs)


def test_what_is_no_model_or_no_tokenizer_is_refused_at_once() -> None:
    model: Any = ScriptedModel(["a"])
    with pytest.raises(TypeError, match="generate"):
        open_engine(type("Other", (), {"uses_torch": False})(), model.tokenizer)
    with pytest.raises(TypeError, match="decode"):
        open_engine(model, object())  # type: ignore[arg-type]


async def test_the_right_form_is_shown() -> None:
    async with engine_of(ScriptedModel(["a"])) as engine:
        context: Any = engine.stream_text("hi")
        misuses: list[Callable[[], object]] = [
            lambda: aiter(context),
            lambda: iter(context),
            lambda: context.__await__(),
        ]
        for misuse in misuses:
            with pytest.raises(TypeError, match="async with"):
                misuse()
        with pytest.raises(TypeError, match="max_new_tokens"):
            engine.stream_text("hi", max_tokens=1)
        async with context as stream:
            await stream.read()
        with pytest.raises(RuntimeError, match="opened before"):
            async with context:
                pass
    owner = engine_of(ScriptedModel(["a"]))
    async with owner:
        pass
    with pytest.raises(RuntimeError, match="opened before"):
        async with owner:
            pass


# -- many at once


async def test_a_hundred_requests_of_which_ten_go() -> None:
    """The shape of vLLM's abort test."""
    rng = random.Random(1)
    script = ["a", "b", "c", "d", "e"]
    model = ScriptedModel(script)
    gone = set(rng.sample(range(100), 10))
    texts: dict[int, str] = {}

    async def ask(number: int) -> None:
        if number in gone:
            with anyio.move_on_after(rng.random() * 0.01):
                async with engine.stream_text(str(number)) as stream:
                    await stream.read()
                    await anyio.sleep_forever()
        else:
            texts[number] = await read(engine, str(number))

    async with engine_of(model) as engine:
        async with create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(ask, number)
        assert engine.statistics().running == engine.statistics().waiting == 0
        assert is_idle(engine)
    assert texts == dict.fromkeys(set(range(100)) - gone, "abcde")


@given(
    moves=st.lists(
        st.sampled_from(["open", "read", "close", "stop", "step", "drop"]), min_size=3, max_size=25
    ),
    buffer=st.sampled_from([1, math.inf]),
)
def test_any_schedule_leaves_the_engine_sound(moves: list[str], buffer: float) -> None:
    anyio.run(run_schedule, moves, buffer, backend="trio")
    anyio.run(run_schedule, moves, buffer)


async def run_schedule(moves: list[str], buffer: float) -> None:
    model = ScriptedModel(["a", "b", "c"])
    cancelled = get_cancelled_exc_class()
    async with engine_of(model) as engine:
        held: list[tuple[Any, Any]] = []
        for move in moves:
            if move == "open":
                context = engine.stream_text("hi", max_buffer_size=buffer)
                held.append((context, await context.__aenter__()))
            elif move == "step":
                await anyio.sleep(0.0001)
            elif held:
                context, stream = held.pop(0)
                if move == "read":
                    assert await stream.read() == "abc"
                if move == "stop":
                    stream.stop()
                    assert "abc".startswith(await stream.read())
                if move != "drop":
                    await context.__aexit__(None, None, None)
                    assert stream.finish_reason is not None
        for context, _ in held:
            with contextlib.suppress(cancelled):
                await context.__aexit__(None, None, None)
        with fail_after(PATIENCE):
            assert await read(engine) == "abc"
        assert engine.statistics().waiting == engine.statistics().running == 0


async def test_consumers_in_other_tasks_and_the_owner_waits_for_them() -> None:
    """The usual shape: the engine around a server, requests in its tasks."""
    model = ScriptedModel(["a", "b"])
    pieces: list[str] = []

    async def follow(items: AsyncIterator[str]) -> None:
        pieces.extend([item async for item in items])

    async with engine_of(model) as engine:
        async with create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(follow, Held(engine).tokens())
    assert sorted("".join(pieces)) == list("aaabbb")
