"""`anystreamer.sync`: the same streams for callers with no event loop."""

from __future__ import annotations

import contextlib
import gc
import inspect
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from anyio import to_thread

import anystreamer
from anystreamer import EngineBusy, EngineClosed, FinishReason, sync
from anystreamer.sync import SyncEngine, open_engine, stream_batch, stream_text
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.inside import async_stream_of, is_receiving, stands_before, worker_left
from ..helpers.scripted import PROGRAM_PATIENCE

PATIENCE = 30.0


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def endless(**kwargs: Any) -> ScriptedModel:
    return ScriptedModel(["word "] * 100_000, delay=0.0005, **kwargs)


def opened(model: ScriptedModel, **kwargs: Any) -> Any:
    return stream_text(model, model.tokenizer, "hi", **kwargs)


def test_a_for_loop_gets_the_text_as_it_is_made() -> None:
    gate = Gate()
    model = ScriptedModel(["one", gate, ", ", "two"])
    with opened(model) as stream:
        pieces = iter(stream)
        assert next(pieces) == "one"
        gate.open()
        assert "".join(pieces) == ", two"
    assert stream.text == "one, two"
    assert stream.finish_reason is FinishReason.EOS
    assert stream.usage.completion_tokens == 4


def test_read_returns_the_rest() -> None:
    with opened(ScriptedModel(["one", ", ", "two"])) as stream:
        assert stream.read() == "one, two"


def test_leaving_the_block_stops_the_model_and_joins_its_thread() -> None:
    model = endless()
    with opened(model) as stream:
        next(stream)
    assert not model.is_generating
    assert model.steps < 100_000
    assert stream.finish_reason is FinishReason.CANCELLED


def test_stop_keeps_what_has_been_made() -> None:
    model = endless()
    with opened(model) as stream:
        next(stream)
        stream.stop()
        stream.read()
    assert stream.finish_reason is FinishReason.STOPPED
    assert stream.text == "word " * model.steps


def test_an_error_of_the_model_arrives_after_the_text_before_it() -> None:
    error = MemoryError("the device is full")
    model = ScriptedModel(["a", error])
    texts = []
    with pytest.raises(MemoryError) as caught, opened(model) as stream:
        for text in stream:
            texts.append(text)
    assert caught.value is error
    assert texts == ["a"]


@pytest.mark.parametrize("error", [ValueError(), SystemExit(3), KeyboardInterrupt()])
def test_an_error_that_nobody_has_seen_is_raised_at_the_blocks_end(error: BaseException) -> None:
    """Also one that would take an event loop down; and the next stream is none the worse for it."""
    model = ScriptedModel([error])
    with pytest.raises(type(error)) as caught, opened(model):
        until(lambda: model.calls and not model.is_generating)
    assert caught.value is error
    with opened(ScriptedModel(["fine"])) as stream:
        assert stream.read() == "fine"


def test_the_bodys_error_wins_over_the_models() -> None:
    model = ScriptedModel([ValueError("theirs")])
    with pytest.raises(LookupError) as caught, opened(model):
        until(lambda: model.calls and not model.is_generating)
        raise LookupError
    assert "theirs" in caught.value.__notes__[0]


def test_an_error_in_the_call_is_raised_at_once() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        model = ScriptedModel([])
        stream_text(model, model.tokenizer, "")


def test_one_model_runs_one_generation_at_a_time_whatever_thread_asks() -> None:
    model = ScriptedModel(["a", "b", "c"], delay=0.001)
    most = 0
    running = 0
    lock = threading.Lock()
    generate = model.generate

    def counted(**kwargs: Any) -> Any:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        try:
            return generate(**kwargs)
        finally:
            with lock:
                running -= 1

    model.generate = counted  # type: ignore[method-assign]

    def work(_: int) -> str:
        with opened(model) as stream:
            return str(stream.read())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(40))) == {"abc"}
    assert most == 1


def test_opened_in_one_thread_advanced_and_closed_in_others() -> None:
    model = endless()
    stream = opened(model)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(stream.__enter__).result()
        assert second.submit(next, stream).result()
        assert next(stream)
        first.submit(stream.close).result()
    assert not model.is_generating
    stream.close()


def test_closing_it_ends_a_next_in_another_thread() -> None:
    """As a web framework does when its client has gone."""
    gate = Gate()
    model = ScriptedModel(["a", gate, "b"])
    stream = opened(model).__enter__()
    assert next(stream) == "a"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: list(stream))
        until(lambda: is_receiving(async_stream_of(stream)))
        closing = threading.Thread(target=stream.close)
        closing.start()
        assert waiting.result(PATIENCE) == []
        gate.open()
        closing.join(PATIENCE)
    assert not model.is_generating


def test_a_forgotten_stream_stops_its_model() -> None:
    model = endless()
    stream = opened(model).__enter__()
    next(stream)
    del stream
    gc.collect()
    until(lambda: not model.is_generating)
    assert model.steps < 100_000


def test_a_generator_that_is_dropped_half_way_stops_its_model() -> None:
    model = endless()

    def answer() -> Any:
        with opened(model) as stream:
            yield from stream

    pieces = answer()
    next(pieces)
    pieces.close()
    assert not model.is_generating


async def test_it_works_in_a_thread_of_a_running_loops_pool() -> None:
    def work() -> str:
        with opened(ScriptedModel(["a", "b"])) as stream:
            return str(stream.read())

    with anyio.fail_after(PATIENCE):
        assert await to_thread.run_sync(work) == "ab"


async def test_it_works_where_a_loop_is_running() -> None:
    """As in a notebook's cell. It blocks that loop, as any blocking call would."""
    with opened(ScriptedModel(["a", "b"])) as stream:
        assert stream.read() == "ab"


def test_a_batch() -> None:
    model = ScriptedModel(["a", "b"])
    with stream_batch(model, model.tokenizer, ["hi"]) as stream:
        assert {piece.row for piece in stream} == {0}
    assert stream.text == ["ab"]
    assert stream.finish_reason == [FinishReason.EOS]


# -- engines


def sync_engine(model: ScriptedModel, **kwargs: Any) -> Any:
    return open_engine(model, model.tokenizer, **kwargs)


def test_an_engine_for_many_threads() -> None:
    model = ScriptedModel(["a", "b", "c"])
    with sync_engine(model) as engine, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> str:
            with engine.stream_text("hi") as stream:
                return "".join(stream)

        assert list(pool.map(ask, range(40))) == ["abc"] * 40
        assert engine.statistics().total.count == 40


def test_a_sync_stream_of_an_engine_is_all_that_others_are() -> None:
    gate = Gate()
    error = ValueError("no")
    model = ScriptedModel(["a", "b", gate, error])
    with sync_engine(model, max_waiting=0) as engine:
        with engine.stream_text("hi") as stream:
            assert next(stream) in ("a", "ab")
            with pytest.raises(EngineBusy), engine.stream_text("hi"):
                pass
            gate.open()
            with pytest.raises(ValueError, match="no") as raised:
                stream.read()
            assert raised.value is error
        assert (stream.text, stream.finish_reason) == ("ab", FinishReason.ERROR)
        with pytest.raises(ValueError, match="no"), engine.stream_text("hi") as stream:
            until(lambda: worker_left(async_stream_of(stream)))
        stream = engine.stream_text("hi")
        with pytest.raises(TypeError, match="with"):
            next(stream)
        with contextlib.suppress(ValueError):  # the model can have failed by the end of the block
            with stream, pytest.raises(RuntimeError, match="opened before"):
                stream.__enter__()
        stream.close()


@pytest.mark.parametrize("way", ["left", "closed elsewhere", "forgotten", "dropped"])
def test_a_sync_stream_that_goes_stops_the_engines_model(way: str) -> None:
    model = endless()
    with sync_engine(model) as engine:
        stream = engine.stream_text("hi")
        if way == "dropped":

            def pieces() -> Any:
                with stream as opened:
                    yield from opened

            generator = pieces()
            assert next(generator)
            generator.close()
        else:
            stream.__enter__()
            assert next(stream)
        if way == "left":
            stream.__exit__(None, None, None)
        if way == "closed elsewhere":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(stream.close).result()
        if way == "forgotten":
            del stream
            gc.collect()
        until(lambda: not model.is_generating)
        until(lambda: engine.statistics().running == 0)
        with engine.stream_text("hi", max_new_tokens=2) as other:
            assert other.read() == "word word "


def test_leaving_a_sync_engine_ends_what_is_open() -> None:
    model = endless()
    with sync_engine(model) as engine:
        stream = engine.stream_text("hi").__enter__()
        assert next(stream)
    assert not model.is_generating
    rest = []
    with pytest.raises(EngineClosed):
        rest.extend(stream)
    assert len(stream.token_ids) == model.steps > 1  # the text that it had
    assert stream.finish_reason is FinishReason.ERROR
    stream.close()
    with pytest.raises(EngineClosed), engine.stream_text("hi"):
        pass


async def test_an_engine_of_an_event_loop_in_its_worker_threads() -> None:
    model = ScriptedModel(["a", "b"])

    def route() -> str:
        with SyncEngine(engine).stream_text("hi") as stream:
            return str(stream.read())

    async with anystreamer.open_engine(model, model.tokenizer) as engine:
        assert [await to_thread.run_sync(route) for _ in range(3)] == ["ab"] * 3
        with pytest.raises(BlockingIOError, match="own event loop"):
            route()


async def test_a_cancelled_scope_around_the_thread_that_reads_does_not_keep_it() -> None:
    model = endless()
    cancelled = anyio.get_cancelled_exc_class()

    def route() -> None:
        with contextlib.suppress(cancelled):
            with SyncEngine(engine).stream_text("hi") as stream:
                for _ in stream:
                    anyio.from_thread.check_cancelled()

    async with anystreamer.open_engine(model, model.tokenizer) as engine:
        for _ in range(20):
            with anyio.move_on_after(0.01):
                await to_thread.run_sync(route)
            assert not model.is_generating


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_engine_whose_loop_ends_under_threads_that_read(backend: str) -> None:
    model = endless()
    ended: list[str] = []

    def read(engine: Any) -> None:
        try:
            with SyncEngine(engine).stream_text("hi") as stream:
                stream.read()
        except EngineClosed:
            ended.append("closed")

    async def main() -> None:
        async with anystreamer.open_engine(model, model.tokenizer) as engine:
            for _ in range(4):
                threads.append(threading.Thread(target=read, args=(engine,)))
                threads[-1].start()
            await anyio.sleep(random.random() * 0.01)

    for _ in range(30):
        threads: list[threading.Thread] = []
        anyio.run(main, backend=backend)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert ended == ["closed"] * 120


def test_every_close_waits_for_the_model() -> None:
    gate = Gate()
    model = ScriptedModel(["a", gate, "b"])
    with sync_engine(model) as engine, ThreadPoolExecutor(3) as pool:
        stream = engine.stream_text("hi").__enter__()
        next(stream)
        until(lambda: stands_before(gate))
        closes = [pool.submit(stream.close) for _ in range(3)]
        time.sleep(0.05)  # for what must not come to pass
        assert not any(each.done() for each in closes)
        gate.open()
        for each in closes:
            each.result()
        assert not model.is_generating


@pytest.mark.parametrize("use", [iter, next, lambda stream: stream.read(), lambda s: s.text])
def test_an_unopened_one_says_how_to_open_it(use: Any) -> None:
    with pytest.raises(TypeError, match="with stream_text"):
        use(opened(ScriptedModel([])))


def test_it_is_opened_once() -> None:
    stream = opened(ScriptedModel(["a"]))
    with stream:
        pass
    with pytest.raises(RuntimeError, match="opened before"):
        stream.__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "raise SystemExit(0)"])
def test_a_process_with_an_open_stream_ends_by_itself(ending: str) -> None:
    program = (
        "import sys\n"
        "from anystreamer.sync import stream_text\n"
        "from anystreamer.testing import ScriptedModel\n"
        "model = ScriptedModel(['word '] * 100_000, delay=0.001)\n"
        "stream = stream_text(model, model.tokenizer, 'hi').__enter__()\n"
        "print(next(stream), flush=True)\n" + ending
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PROGRAM_PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# -- An engine of its own, without a block


def test_an_engine_that_is_held_is_open_and_closes_when_told() -> None:
    """As frameworks keep it that cache an object: nothing but the engine is held."""
    model = ScriptedModel(["one"])
    engine = open_engine(model, model.tokenizer).open()
    gc.collect()
    time.sleep(2 * sync._keeper.OWNER_POLL)  # the loop looks whether it has been forgotten
    gc.collect()
    with engine.stream_text("hi") as stream:
        assert stream.read() == "one"
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed), engine.stream_text("hi"):
        pass


def test_what_its_context_manager_returns_can_be_held_alone() -> None:
    model = ScriptedModel(["one"])
    engine = open_engine(model, model.tokenizer).__enter__()
    gc.collect()
    time.sleep(2 * sync._keeper.OWNER_POLL)
    with engine.stream_text("hi") as stream:
        assert stream.read() == "one"
    engine.close()


def test_a_forgotten_engine_stops_its_model() -> None:
    model = endless()
    engine = open_engine(model, model.tokenizer).open()
    stream = engine.stream_text("hi").__enter__()
    next(stream)
    del engine
    gc.collect()
    until(lambda: not model.is_generating)
    with contextlib.suppress(EngineClosed):
        stream.close()


def test_an_unopened_engine_says_how_to_open_it() -> None:
    model = ScriptedModel(["one"])
    with pytest.raises(TypeError, match=r"open_engine\(\.\.\.\)\.open\(\)"):
        open_engine(model, model.tokenizer).stream_text("hi")


def test_an_engine_is_opened_once() -> None:
    model = ScriptedModel(["one"])
    with open_engine(model, model.tokenizer) as engine:
        pass
    with pytest.raises(RuntimeError, match="opened before"):
        engine.open()


def test_an_engine_that_cannot_open_says_why() -> None:
    class Failing(ScriptedModel):
        training = True

    with pytest.raises(ValueError, match="training mode"):
        open_engine(Failing([]), ScriptedModel([]).tokenizer)


def test_only_an_open_engine_has_a_sync_engine() -> None:
    model = ScriptedModel(["one"])
    with pytest.raises(TypeError, match="must be an open engine"):
        SyncEngine(anystreamer.open_engine(model, model.tokenizer))  # type: ignore[arg-type]


def test_a_process_with_an_open_engine_ends_by_itself() -> None:
    program = (
        "from anystreamer.sync import open_engine\n"
        "from anystreamer.testing import ScriptedModel\n"
        "model = ScriptedModel(['word '] * 100_000, delay=0.001)\n"
        "engine = open_engine(model, model.tokenizer).__enter__()\n"
        "stream = engine.stream_text('hi').__enter__()\n"
        "print(next(stream), flush=True)\n"
    )
    done = run_program(program)
    assert (done.returncode, done.stderr) == (0, "")


# -- Its loop


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PROGRAM_PATIENCE,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of open files")
def test_a_loop_that_cannot_start_raises_and_the_next_call_tries_again() -> None:
    done = run_program(
        "import resource\n"
        "from anystreamer.sync import stream_text\n"
        "from anystreamer.testing import ScriptedModel\n"
        "import asyncio, selectors, anyio._backends._asyncio\n"
        "model = ScriptedModel(['one'])\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        stream_text(model, model.tokenizer, 'hi').__enter__()\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "with stream_text(model, model.tokenizer, 'hi') as stream:\n"
        "    print(stream.read())\n"
    )
    assert done.stdout.split("\n") == ["Too many open files"] * 2 + ["one", ""], done.stderr


def test_a_ctrl_c_while_the_loop_starts_leaves_it_usable() -> None:
    done = run_program(
        "import os, signal, threading\n"
        "from anystreamer import sync\n"
        "from anystreamer.testing import ScriptedModel\n"
        "model = ScriptedModel(['one'])\n"
        "serve = sync._portal.Portal._serve\n"
        "async def slow(self, started):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    interrupted.wait()\n"
        "    await serve(self, started)\n"
        "interrupted = threading.Event()\n"
        "sync._portal.Portal._serve = slow\n"
        "try:\n"
        "    sync.stream_text(model, model.tokenizer, 'hi').__enter__()\n"
        "except KeyboardInterrupt:\n"
        "    interrupted.set()\n"
        "with sync.stream_text(model, model.tokenizer, 'hi') as stream:\n"
        "    print(stream.read())\n"
    )
    assert done.stdout == "one\n", done.stderr


@pytest.mark.parametrize("when", ["before it is there", "when it is there"])
def test_a_ctrl_c_while_a_stream_opens_stops_it(when: str) -> None:
    """The exception, which somebody may keep, leads to the stream."""
    done = run_program(
        "import os, signal, threading\n"
        "from anystreamer import sync\n"
        "from anystreamer._bridge import DetachedContext\n"
        "opened = DetachedContext.__aenter__\n"
        "caught, stopped = threading.Event(), threading.Event()\n"
        "async def interrupted(self):\n"
        f"    stream = await opened(self) if {when == 'when it is there'} else None\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    caught.wait()\n"
        "    return stream or await opened(self)\n"
        "DetachedContext.__aenter__ = interrupted\n"
        "def block(emit, should_stop):\n"
        "    should_stop.on_stop(stopped.set)\n"
        "    stopped.wait()\n"
        "try:\n"
        "    sync.stream_from_thread(block).__enter__()\n"
        "except KeyboardInterrupt as exc:\n"
        "    kept = exc\n"
        "    caught.set()\n"
        "print(stopped.wait(20))\n"
    )
    assert done.stdout == "True\n", done.stderr


def test_many_threads_start_one_loop() -> None:
    done = run_program(
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from anystreamer.sync import stream_text\n"
        "from anystreamer.testing import ScriptedModel\n"
        "model = ScriptedModel(['one'])\n"
        "barrier = threading.Barrier(16)\n"
        "def use(_):\n"
        "    barrier.wait()\n"
        "    with stream_text(model, model.tokenizer, 'hi') as stream:\n"
        "        return stream.read()\n"
        "with ThreadPoolExecutor(16) as pool:\n"
        "    assert list(pool.map(use, range(16))) == ['one'] * 16\n"
        "print(sum(each.name == 'anystreamer portal' for each in threading.enumerate()))\n"
    )
    assert done.stdout == "1\n", done.stderr


# -- What notebooks and type checkers see


@pytest.mark.parametrize("name", ["stream_text", "stream_batch", "open_engine"])
def test_the_arguments_are_visible(name: str) -> None:
    source = inspect.signature(getattr(anystreamer, name))
    assert inspect.signature(getattr(sync, name)).parameters == source.parameters


def test_the_arguments_of_an_engines_streams_are_visible() -> None:
    source = inspect.signature(anystreamer.Engine.stream_text).parameters
    assert inspect.signature(SyncEngine.stream_text).parameters == source


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (sync.SyncTextStream, anystreamer.TextStream),
        (sync.SyncBatchStream, anystreamer.BatchStream),
    ],
)
def test_a_sync_stream_has_all_attributes_and_no_coroutines(kind: Any, source: Any) -> None:
    properties = inspect.getmembers(source, lambda value: isinstance(value, property))
    attributes = {name for name, _ in properties if not name.startswith("_")}
    assert attributes - {"extra_attributes"} <= set(dir(kind))
    assert not [name for name in dir(kind) if inspect.iscoroutinefunction(getattr(kind, name))]


def test_what_a_stream_does_not_have_is_an_attribute_error() -> None:
    with opened(ScriptedModel(["a"])) as stream:
        with pytest.raises(AttributeError):
            stream.receive  # noqa: B018
