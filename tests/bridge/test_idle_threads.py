"""A program whose event loop is ended before its tasks are still ends: no idle thread keeps it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from ..helpers.scripted import NATIVE_LOOPS, PATIENCE

pytestmark = pytest.mark.slow

TWO_CTRL_CS = """
    import asyncio, sys, time
    import anyio, anystreamer

    def interrupt():
        raise KeyboardInterrupt

    def produce(emit, should_stop):
        emit(1)

    async def main():
        async with anystreamer.stream_from_thread(produce) as stream:
            await stream.receive()
        asyncio.get_running_loop().call_soon(interrupt)  # as one that strikes the loop
        try:
            await anyio.sleep_forever()
        finally:
            interrupt()  # as one that strikes while the runner cancels its tasks

    anyio.run(main, backend_options={"use_uvloop": sys.argv[1] == "uvloop"})
"""

STRUCK_IN_THE_START_OF_A_THREAD = """
    import asyncio, sys, threading
    import anyio, anystreamer

    class Struck(threading.Thread):
        def start(self):
            threading.Thread.start(self)
            raise KeyboardInterrupt

    from anyio._backends import _asyncio
    _asyncio.WorkerThread.start = Struck.start

    async def main():
        async with anystreamer.stream_from_thread(lambda emit, should_stop: None) as stream:
            await stream.receive()

    anyio.run(main, backend_options={"use_uvloop": sys.argv[1] == "uvloop"})
"""


@pytest.mark.parametrize("program", [TWO_CTRL_CS, STRUCK_IN_THE_START_OF_A_THREAD])
@pytest.mark.parametrize(
    "loop", ["asyncio", *(["uvloop"] if "uvloop" in str(NATIVE_LOOPS) else [])]
)
def test_a_program_whose_loop_is_interrupted_twice_ends(program: str, loop: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), loop],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "KeyboardInterrupt" in ran.stderr
    assert ran.returncode != 0
