"""Ctrl-C in any phase, and programs that end with a stream open: each ends by itself."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap

import pytest

from ..helpers.scripted import NATIVE_LOOPS, PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="a Ctrl-C goes to the whole console"),
]

RUNNERS = {
    "asyncio": "import asyncio; asyncio.run(main())",
    "trio": "import trio; trio.run(main)",
    "anyio on asyncio": "anyio.run(main)",
    "anyio on uvloop": "anyio.run(main, backend_options={'use_uvloop': True})",
    "anyio on trio": "anyio.run(main, backend='trio')",
}
if "uvloop" not in str(NATIVE_LOOPS):  # there is none for Windows
    RUNNERS.pop("anyio on uvloop")

INTERRUPTED = """
    import sys, threading, time
    import anyio, anyio.from_thread
    from anystreamer import stream_from_thread

    running = False

    def say(*words):
        print(*words, flush=True)

    def produce(emit, should_stop):
        global running
        running = True
        emit("first")
        while not should_stop():
            time.sleep(0.001)
        for _ in range(5):  # the block has come to wait for us
            anyio.from_thread.run_sync(int)
        say("stopping")
        sys.stdin.readline()  # the rest of the step in progress
        running = False

    async def main():
        try:
            async with stream_from_thread(produce) as stream:
                async for _ in stream:
                    say("streaming")
        finally:
            say("left", "running" if running else "joined")
"""


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_joins_the_producer_and_ends_the_program_with_a_bare_keyboard_interrupt(
    runner: str, times: int
) -> None:
    """Once while streaming; twice: again while the step in progress is waited for."""
    program = textwrap.dedent(INTERRUPTED) + "\n" + RUNNERS[runner]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == "streaming\n"
            process.send_signal(signal.SIGINT)
            line = process.stdout.readline()
            assert line == "stopping\n", line + process.stderr.read()
            if times == 2:
                process.send_signal(signal.SIGINT)
            out, err = process.communicate("\n", timeout=PATIENCE)
        finally:
            process.kill()
    assert out == "left joined\n"
    assert err.splitlines()[-1] == "KeyboardInterrupt", err
    assert "ExceptionGroup" not in err
    assert "Warning" not in err
    assert "was never" not in err  # retrieved, awaited
    assert process.returncode == -signal.SIGINT


WITH_AN_ENGINE = """
    import os, sys
    import anyio
    from anystreamer import open_engine
    from anystreamer.testing import ScriptedModel

    model = ScriptedModel(["word "] * 20_000, delay=0.0005)

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    async def follow(engine):  # held across a yield, too
        async with engine.stream_text("hi") as stream:
            async for piece in stream:
                yield piece

    async def ask(engine, number):
        async for _ in follow(engine):
            if number == 0 and model.steps > 5:
                number = None
                say("streaming")

    async def main():
        try:
            async with open_engine(model, model.tokenizer) as engine:
                async with anyio.create_task_group() as tasks:
                    for number in range(4):  # one runs, three wait
                        tasks.start_soon(ask, engine, number)
                        while not model.steps:
                            await anyio.sleep(0.001)
        finally:
            say("left", "running" if model.is_generating else "joined", len(model.calls))
"""


@pytest.mark.parametrize("runner", RUNNERS)
def test_ctrl_c_ends_an_engine_and_its_streams(runner: str) -> None:
    program = textwrap.dedent(WITH_AN_ENGINE) + "\n" + RUNNERS[runner]
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "streaming\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert out == "left joined 1\n", err
    assert "KeyboardInterrupt" in err
    assert "was never" not in err  # retrieved, awaited
    assert process.returncode in (-signal.SIGINT, 1)  # 1: trio, in a group beside EngineClosed


STRUCK_WHERE_IT_WAITS = """
    import faulthandler, signal, sys, time
    import anyio, anyio.from_thread
    from anystreamer import stream_from_thread

    def until_it_waits():  # the loop takes these calls while the main task waits
        for _ in range(5):
            anyio.from_thread.run_sync(int)

    def produce(emit, should_stop):
        global running
        running = True
        try:
            until_it_waits()
            emit("first")
            until_it_waits()
            emit("second")
            while not should_stop():
                time.sleep(0.001)
        finally:
            until_it_waits()
            running = False

    async def main():
        sys.settrace(trace)
        try:
            async with stream_from_thread(produce) as stream:
                assert await stream.receive() == "first"
                assert await stream.receive() == "second"
                await stream.receive()
        finally:
            sys.settrace(None)
            assert not running

    def trace(frame, event, arg):
        global lines
        code = frame.f_code
        if code.co_name != "wait" or "threading" in code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines == strike:
                signal.raise_signal(signal.SIGINT)
        return trace

    for strike in range(1, 36):  # a wait has ten lines or more
        lines, running = 0, False
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            anyio.run(main, backend="trio")
        except KeyboardInterrupt:
            print(strike, lines >= strike)
"""


def test_ctrl_c_at_any_line_of_a_wait_ends_the_block_in_good_order() -> None:
    """On trio it strikes anywhere, in trio.Event.wait too, and leaves the task on its list."""
    pytest.importorskip("trio")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(STRUCK_WHERE_IT_WAITS)],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "".join(f"{strike} True\n" for strike in range(1, 36))


STRUCK_AT_ANY_CALL = """
    import faulthandler, os, signal, sys, time
    import anyio, anyio.lowlevel, anystreamer, contextlib
    from anystreamer import open_engine, open_worker, stream_from_thread
    from anystreamer.testing import ScriptedModel
    from tests.helpers.struck import Striker

    OURS = tuple(
        os.path.join(os.path.dirname(anystreamer.__file__), each, "")
        for each in ("_bridge", "_engine", "_workers")
    )
    BELOW = os.path.dirname(anyio.__file__), contextlib.__file__
    model = ScriptedModel(["a"] * 200_000, delay=0.0005)

    def produce(emit, should_stop):
        emit("first")
        while not should_stop():
            time.sleep(0.0005)

    async def read_twice(new_stream):
        for _ in range(2):  # also after one that was interrupted
            try:
                with anyio.fail_after(20) if sys.getprofile() is None else contextlib.nullcontext():
                    async with new_stream() as stream:
                        await stream.receive()
                    await anyio.lowlevel.checkpoint()  # where one arrives that struck the end
            except KeyboardInterrupt:
                pass

    async def bridge():
        await read_twice(lambda: stream_from_thread(produce))

    async def engine():
        async with open_engine(model, model.tokenizer) as engine:
            await read_twice(lambda: engine.stream_text("hi"))

    async def worker():
        async with open_worker() as worker:
            await read_twice(lambda: worker.stream_from_thread(produce))

    async def main():
        sys.setprofile(striker)
        try:
            await globals()[sys.argv[1]]()
        finally:
            sys.setprofile(None)

    def is_in_start(frame):  # of a task, in trio's own code
        while frame is not None:
            if frame.f_code.co_qualname == "UngroupedTaskGroup.start":
                return True
            frame = frame.f_back
        return False

    def is_below(frame):  # in code that ours calls
        while frame.f_back is not None and frame.f_code.co_filename.startswith(BELOW):
            frame = frame.f_back
        return frame.f_code.co_filename.startswith(OURS)

    def may_strike(frame):
        if where == "here":
            return frame.f_code.co_filename.startswith(OURS)
        return is_in_start(frame) if where == "start" else is_below(frame)

    def say(line):
        os.write(1, f"{line}\\n".encode())

    where, striker = sys.argv[2], Striker(may_strike, report=say)
    while True:
        before = len(striker.places)
        striker.begin()
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            anyio.run(main, backend="trio")
        except KeyboardInterrupt:
            pass
        except BaseException as exc:
            say(f"{type(exc).__name__} from {striker.places[-1]}")
        if model.is_generating:
            say(f"Running from {striker.places[-1]}")
        if len(striker.places) == before:  # it came to its end: there is no other place
            os._exit(0)
"""


@pytest.mark.parametrize(
    "owner", ["bridge", "engine", pytest.param("worker", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize(
    "where", ["here", "start", pytest.param("below", marks=pytest.mark.nightly)]
)
def test_ctrl_c_at_any_call_ends_the_block_in_good_order(where: str, owner: str) -> None:
    """On trio it strikes anywhere: before a task was started, or where one tells that it ends.

    Or in trio's own start of a task, or in what our code calls. If the program goes on, the turn
    has been given up, and the engine or the worker serves the next stream.
    """
    pytest.importorskip("trio")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(STRUCK_AT_ANY_CALL), owner, where],
        capture_output=True,
        text=True,
    )
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, lines[-1] + ran.stderr
    assert len(lines) > (50 if where == "here" else 20)
    assert not [line for line in lines if re.match(r"\w+ from ", line)]
    assert not ran.stderr


STRUCK_WHILE_IT_READS = """
    import contextlib, faulthandler, os, signal, sys, threading
    import anyio, anyio.lowlevel, anystreamer
    from anystreamer import AsyncTextIteratorStreamer, stream_from_thread, stream_text
    from anystreamer.testing import ScriptedModel
    from tests.helpers.struck import Striker

    OURS = os.path.dirname(anystreamer.__file__)
    WORDS = [f"{number} " for number in range(60)]
    model = ScriptedModel(WORDS, delay=0.0005)

    def produce(emit, should_stop):
        for word in WORDS:
            emit(word)

    def drop_in():
        def generate():
            for character in "".join(WORDS):  # each is a token
                streamer.put([ord(character)])
            streamer.end()

        streamer = AsyncTextIteratorStreamer(model.tokenizer)
        threading.Thread(target=generate).start()
        return streamer

    async def main(new_stream):
        words, striker = [], Striker(lambda frame: frame.f_code.co_filename.startswith(OURS))
        async with new_stream() as stream:
            while True:
                try:
                    sys.setprofile(striker)
                    if new_stream is drop_in:
                        words.append(await anext(stream))
                    elif len(words) % 3:
                        words.append(await stream.receive())
                    else:
                        words += await stream.receive_many(2)
                except KeyboardInterrupt:
                    pass
                except (anyio.EndOfStream, StopAsyncIteration):
                    break
                finally:
                    sys.setprofile(None)
            with contextlib.suppress(KeyboardInterrupt):
                await anyio.lowlevel.checkpoint()  # where one arrives that struck the end
        assert "".join(words) == "".join(WORDS), words
        print(len(striker.places))

    faulthandler.dump_traceback_later(60, exit=True)
    for new_stream in (
        lambda: stream_from_thread(produce),
        lambda: stream_from_thread(produce, max_buffer_size=4),
        lambda: stream_text(model, model.tokenizer, "hi"),
        drop_in,
    ):
        anyio.run(main, new_stream, backend="trio")
"""


def test_ctrl_c_at_any_call_of_a_receive_loses_no_item() -> None:
    pytest.importorskip("trio")
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(STRUCK_WHILE_IT_READS)]
    ran = subprocess.run(program, capture_output=True, text=True)
    assert ran.stderr == ""
    assert all(int(struck) > 10 for struck in ran.stdout.split()), ran.stdout
    assert len(ran.stdout.split()) == 4


STRUCK_A_SECOND_TIME = """
    import asyncio, contextvars, faulthandler, signal, sys, time
    import anyio
    from anystreamer import open_engine, stream_from_thread
    from anystreamer.testing import ScriptedModel
    from tests.helpers.struck import Striker

    loop, owner, phase = sys.argv[1:]
    model = ScriptedModel(["a"] * 100_000, delay=0.0005)

    def produce(emit, should_stop):
        global running
        running = True
        emit("first")
        while not should_stop():
            time.sleep(0.0005)
        running = False

    async def bridge():
        if phase == "opening":
            interrupt()
        async with stream_from_thread(produce) as stream:
            await stream.receive()
            interrupt()
            await anyio.sleep_forever()

    async def engine():
        if phase == "opening":
            interrupt()
        async with open_engine(model, model.tokenizer) as engine:
            async with engine.stream_text("hi") as stream:
                await stream.receive()
                interrupt()
                await stream.read()

    def interrupt():
        sys.setprofile(striker)
        signal.raise_signal(signal.SIGINT)

    striker = Striker(lambda frame: frame.f_code.co_filename != "<string>")  # all libraries, too
    options = {"use_uvloop": loop == "uvloop"}
    while True:
        before, running = len(striker.places), False
        striker.begin()
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            contextvars.copy_context().run(anyio.run, globals()[owner], backend_options=options)
        except KeyboardInterrupt:
            pass
        except RuntimeError as exc:  # one that strikes the loop's own end leaves it as running
            assert "running" in str(exc) or "closed" in str(exc), (exc, striker.places[-1])
        sys.setprofile(None)
        asyncio._set_running_loop(None)  # for the next run
        assert not (running or model.is_generating), striker.places[-1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, striker.places[-1]
        if len(striker.places) == before:  # it came to its end: there is no other place
            break
    faulthandler.dump_traceback_later(20, exit=True)  # for the end of the process
    print(len(striker.places))
"""


@pytest.mark.parametrize("owner", ["bridge", "engine"])
@pytest.mark.parametrize("phase", ["opening", "streaming"])
@pytest.mark.parametrize(
    "loop", ["asyncio", *(["uvloop"] if "uvloop" in str(NATIVE_LOOPS) else [])]
)
def test_a_second_ctrl_c_at_any_call_leaves_no_loop_and_no_thread_that_waits(
    loop: str, phase: str, owner: str
) -> None:
    """It strikes each place in asyncio, anyio and here, from the first Ctrl-C to the loop's end."""
    program = textwrap.dedent(STRUCK_A_SECOND_TIME)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, loop, owner, phase],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 200


WITH_A_BLOCKED_LOOP = """
    import signal
    import anyio
    from anystreamer import stream_from_thread
    from anystreamer._bridge import interrupts

    async def main():
        async with stream_from_thread(lambda emit, should_stop: None):
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
                print("goes on", flush=True)
                interrupts.BLOCKED = -1.0  # as if the loop had been blocked for long

    anyio.run(main)
"""


def test_a_ctrl_c_strikes_what_blocks_the_loop() -> None:
    """The first one cancels, the second one waits for the loop, which does not come."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITH_A_BLOCKED_LOOP)], capture_output=True, text=True
    )
    assert ran.stdout == "goes on\n" * 2
    assert ran.stderr.splitlines()[-1] == "KeyboardInterrupt"


WITH_ITS_OWN_HANDLER = """
    import signal
    import anyio
    from anystreamer import stream_from_thread

    def handler(number, frame):
        print("handled", flush=True)

    async def main():
        async with stream_from_thread(lambda emit, should_stop: None):
            assert signal.getsignal(signal.SIGINT) is handler
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, handler)
    anyio.run(main)
    assert signal.getsignal(signal.SIGINT) is handler
"""


def test_a_handler_of_the_program_stays() -> None:
    program = textwrap.dedent(WITH_ITS_OWN_HANDLER)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("handled\n", "")


IN_A_PHASE = """
    import os, sys, threading, time
    import anyio
    from anystreamer import stream_text
    from anystreamer.testing import Gate, ScriptedModel

    def say(*words):  # in one write: print() makes several, and two threads tell
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    phase, runner = sys.argv[1:]
    gate, waits = Gate(), threading.Event()

    class Model(ScriptedModel):
        def generate(self, **kwargs):
            output = super().generate(**kwargs)
            if phase == "finishing":
                gate.wait()
            return output

    scripts = {"prefill": [gate], "queued": [gate], "decoding": ["a", "b", gate]}
    model = Model([*scripts.get(phase, []), *["c"] * (3 if phase == "finishing" else 10_000)])

    if phase == "encoding":
        class Tokenizer(type(model.tokenizer)):
            def __call__(self, *args, **kwargs):
                gate.wait()
                return super().__call__(*args, **kwargs)
        model.tokenizer.__class__ = Tokenizer

    def follow():
        if phase == "full":
            while not model.steps:
                time.sleep(0.001)
        else:
            gate._reached.wait()
        if phase != "encoding":
            waits.wait()
        time.sleep(0.05)  # until the main task waits, and is not on its way there
        say("ready")
        sys.stdin.readline()
        while not context.task.state.abandoned:  # until it is being left
            time.sleep(0.001)
        say("steps", model.steps)
        gate.open()

    async def main():
        global context
        kwargs = {"max_buffer_size": 1} if phase == "full" else {}
        context = stream_text(model, model.tokenizer, "hi", **kwargs)
        threading.Thread(target=follow).start()
        try:
            async with context as stream:
                if phase == "queued":
                    await gate.reached()
                    async with stream_text(model, model.tokenizer, "hi") as stream:
                        waits.set()
                        await stream.read()
                waits.set()
                await (anyio.sleep_forever() if phase == "full" else stream.read())
        finally:
            now = "running" if model.is_generating else "joined"
            say("left", now, model.steps, len(model.calls))

    options = {"use_uvloop": True} if runner == "uvloop" else {}
    anyio.run(main, backend="trio" if runner == "trio" else "asyncio", backend_options=options)
"""


@pytest.mark.parametrize(
    "phase", ["encoding", "queued", "prefill", "decoding", "full", "finishing"]
)
@pytest.mark.parametrize(
    "runner", ["asyncio", *(["uvloop"] if "uvloop" in str(NATIVE_LOOPS) else []), "trio"]
)
def test_ctrl_c_in_each_phase_leaves_within_a_step(phase: str, runner: str) -> None:
    """The step in progress is held until the block is being left."""
    program = textwrap.dedent(IN_A_PHASE)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program, phase, runner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate("\n", timeout=PATIENCE)
        finally:
            process.kill()
    lines = [line.split() for line in out.splitlines()]
    (before,) = [int(words[1]) for words in lines if words[0] == "steps"]
    (left,) = [words for words in lines if words[0] == "left"]
    _, joined, steps, calls = left
    assert joined == "joined"
    assert int(steps) <= before + (phase in ("queued", "prefill", "decoding", "full"))
    assert int(calls) == (0 if phase == "encoding" else 1)
    assert err.splitlines()[-1] == "KeyboardInterrupt", err
    assert "ExceptionGroup" not in err
    assert "Warning" not in err
    assert process.returncode == -signal.SIGINT


LEFT_OPEN = """
    import sys
    import anyio
    from anystreamer import stream_text
    from anystreamer.testing import ScriptedModel

    model = ScriptedModel(["a"] * 20_000, delay=0.001)

    async def main():
        context = stream_text(model, model.tokenizer, "hi")
        stream = await context.__aenter__()
        assert (await stream.receive())[0] == "a"  # and more on a busy machine
        {}

    anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "ending",
    [
        "await context.__aexit__(None, None, None)",
        "raise SystemExit",
        "globals()['kept'] = context, stream",
        "pass",
    ],
)
def test_a_program_that_never_closes_its_stream_ends(ending: str, backend: str) -> None:
    """With complaints where it did not close it, and on trio an error; but it ends."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LEFT_OPEN).format(ending), backend],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if "__aexit__" in ending:
        assert (ran.returncode, ran.stderr) == (0, "")
