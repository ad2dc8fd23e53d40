"""A child that was forked beside open streams begins anew: nothing of the parent runs on in it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from ..helpers.scripted import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

# From Python 3.12 on, each fork beside a thread is warned of.
QUIET = ("-W", "ignore::DeprecationWarning")

BESIDE_A_STREAM = """
    import os, sys
    import anyio, anystreamer
    from anystreamer.testing import Gate, ScriptedModel

    def numbers():
        now = anystreamer.statistics()
        return now.waiting, now.running, now.threads

    async def read():
        model = ScriptedModel(["a"])
        async with anystreamer.stream_text(model, model.tokenizer, "hi") as stream:
            return await stream.read()

    async def main():
        gate = Gate()
        model = ScriptedModel([gate, "a"])
        async with anystreamer.stream_text(model, model.tokenizer, "hi") as stream:
            async with anystreamer.stream_text(model, model.tokenizer, "hi"):
                await gate.reached()
                assert numbers() == (1, 1, 1)
                if not (child := os.fork()):
                    os._exit(0 if numbers() == (0, 0, 0) else 1)
                assert os.waitpid(child, 0)[1] == 0
                assert numbers() == (1, 1, 1)
            gate.open()
            await stream.read()

    anyio.run(main, backend=sys.argv[1])
    if not (child := os.fork()):  # after its loop
        text = anyio.run(read, backend=sys.argv[1])
        os._exit(0 if text == "a" and numbers() == (0, 0, 0) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_streams_of_the_parent_are_not_those_of_a_child(backend: str) -> None:
    ran = subprocess.run(
        [sys.executable, *QUIET, "-c", textwrap.dedent(BESIDE_A_STREAM), backend],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


WHILE_OTHERS_COUNT = """
    import os, signal, sys, threading
    import anystreamer

    sys.setswitchinterval(1e-6)
    is_over = False

    def count():
        while not is_over:
            anystreamer.statistics()

    threads = [threading.Thread(target=count, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        if not (child := os.fork()):
            signal.alarm(10)  # ends a child that waits for ever
            anystreamer.statistics()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "a child waits for a thread that it does not have"
    is_over = True
    for thread in threads:
        thread.join()
"""


def test_a_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held() -> None:
    ran = subprocess.run(
        [sys.executable, *QUIET, "-c", textwrap.dedent(WHILE_OTHERS_COUNT)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
