"""A forked child with open streams of its parent: using them is an error, leaving does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from ..helpers.scripted import PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
]

# From Python 3.12 on, each fork beside a thread is warned of.
QUIET = ("-W", "ignore::DeprecationWarning")

COMMON = """
    import faulthandler, os, signal, sys, threading, traceback
    import anyio, anystreamer
    from anystreamer import sync
    from anystreamer.testing import Gate, ScriptedModel

    model = ScriptedModel(["a"] * 10_000, delay=0.001)
    backend = sys.argv[1]

    def fork(check):
        '''Fork a child, which must not wait: it ends with 0 if *check* raises nothing.'''
        if not (child := os.fork()):
            signal.alarm(20)
            faulthandler.dump_traceback_later(15)
            try:
                check()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    def is_refused(func, *args):
        try:
            result = func(*args)
        except RuntimeError as exc:
            # Of asyncio no event loop is running in the child.
            assert "forked" in str(exc) or "no running event loop" in str(exc), exc
        else:
            raise AssertionError(f"{func} returned {result!r}")

    def step(coroutine):
        '''Run a coroutine that must not wait.'''
        try:
            coroutine.send(None)
        except StopIteration as exc:
            return exc.value
        raise AssertionError("it waits")
"""

WITHOUT_A_LOOP = """
    with sync.open_engine(model, model.tokenizer) as engine:
        with engine.stream_text("hi") as of_engine:
            next(of_engine)

            def check():
                text = of_engine.text
                is_refused(next, of_engine)
                is_refused(of_engine.read)
                of_engine.stop()
                of_engine.close()
                of_engine.__exit__(None, None, None)
                assert of_engine.text == text
                is_refused(engine.stream_text("hi").__enter__)
                engine.close()
                engine.__exit__(None, None, None)
                with sync.open_engine(other, other.tokenizer) as another:
                    with another.stream_text("hi") as stream:
                        assert stream.read() == "b"

            other = ScriptedModel(["b"])
            fork(check)
            next(of_engine)
    batch = sync.stream_batch(model, model.tokenizer, ["hi"])
    unopened = sync.stream_text(other, other.tokenizer, "hi")
    with batch, sync.stream_text(model, model.tokenizer, "hi") as waits:
        next(batch)

        def check():
            for stream in (batch, waits):
                is_refused(stream.read)
                stream.close()
            with unopened:
                assert unopened.read() == "b"

        fork(check)
        next(batch)
"""

IN_A_LOOP = """
    async def main():
        context = anystreamer.stream_text(model, model.tokenizer, "hi")
        of_batch = anystreamer.stream_batch(model, model.tokenizer, ["hi"])
        engines = ScriptedModel(["a"] * 9999, delay=0.001)
        of_engine = anystreamer.open_engine(engines, model.tokenizer)
        of_worker = anystreamer.open_worker()
        async with of_engine as engine, of_worker as worker, context as stream, of_batch as batch:
            of_request = engine.stream_text("hi")
            of_rows = worker.stream_iterable(lambda: range(9), max_buffer_size=1)
            async with of_request as request, of_rows as rows:
                streamer = anystreamer.AsyncTextIteratorStreamer(model.tokenizer)
                await stream.receive()
                await request.receive()

                def check():
                    for each in (stream, request, batch, streamer):
                        is_refused(step, each.__anext__())
                    for each in (stream, request, batch, rows):
                        is_refused(step, each.receive())
                        each.stop()
                        step(each.aclose())
                        repr(each)
                    for each in (of_request, of_rows, of_batch, context, of_worker, of_engine):
                        step(each.__aexit__(None, None, None))
                    is_refused(step, engine.stream_text("hi").__aenter__())
                    is_refused(step, worker.stream_iterable(list).__aenter__())
                    is_refused(step, worker.run(int))
                    is_refused(sync.SyncEngine(engine).stream_text("hi").__enter__)
                    streamer.stop()

                fork(check)
                await stream.receive()
                await request.receive()
                assert [row async for row in rows] == list(range(9))
            assert await worker.run(int) == 0

    anyio.run(main, backend=backend)
"""

WHERE_A_THREAD_ENCODES = """
    gate = Gate()

    class Tokenizer(type(model.tokenizer)):
        def __call__(self, *args, **kwargs):
            gate.wait()
            return super().__call__(*args, **kwargs)

    usual, model.tokenizer.__class__ = type(model.tokenizer), Tokenizer

    async def read():
        async with anystreamer.stream_text(model, model.tokenizer, "hi") as stream:
            return await stream.receive()

    def check():
        model.tokenizer.__class__ = usual
        assert not anyio.run(read).strip("a")

    thread = threading.Thread(target=anyio.run, args=(read,), kwargs={"backend": backend})
    thread.start()
    anyio.run(gate.reached)
    fork(check)
    gate.open()
    thread.join()
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("program", [WITHOUT_A_LOOP, IN_A_LOOP, WHERE_A_THREAD_ENCODES])
def test_a_child_neither_waits_for_its_parents_threads_nor_disturbs_them(
    program: str, backend: str
) -> None:
    ran = subprocess.run(
        [sys.executable, *QUIET, "-c", textwrap.dedent(COMMON) + textwrap.dedent(program), backend],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
    )
    assert ran.returncode == 0, ran.stderr
