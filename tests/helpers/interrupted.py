"""A program that sends Ctrl-Cs at random moments to many processes, and reports those that hang.

``python -m tests.helpers.interrupted LOOP CTRL_CS PROCESSES SEED``. Each process is a fork of this
one, so that it need not import anything. It ends as a program does, by the end of its main thread.
The output has a line for each process that

- needed more Ctrl-Cs to end,
- hangs: more Ctrl-Cs did not end it; the stacks of its threads follow,
- has left its block while a model was running.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import anystreamer
from anystreamer import sync
from anystreamer.testing import ScriptedModel

AT_ONCE = 4  # processes
PATIENCE = 10.0  # seconds, for a process to end; then one more Ctrl-C comes every second
MORE = 5  # Ctrl-Cs at most
SPAN = 0.08  # seconds in which the Ctrl-Cs come; a stream opens in a few milliseconds

inside = 0  # producers that run


def produce(emit: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
    global inside
    inside += 1
    try:
        while not should_stop():
            emit(1)
            time.sleep(0.0005)
    finally:
        inside -= 1


def new_model() -> ScriptedModel:
    return ScriptedModel(["a "] * 100_000, delay=0.0005)


model = new_model()


async def nothing() -> None:
    pass


async def bridge() -> None:
    async with anystreamer.stream_from_thread(produce) as stream:
        async for _ in stream:
            pass


async def bounded() -> None:
    async with anystreamer.stream_from_thread(produce, max_buffer_size=1) as stream:
        async for _ in stream:
            await anyio.sleep(0.002)


async def text() -> None:
    async with anystreamer.stream_text(model, model.tokenizer, "hi") as stream:
        await stream.read()


async def engine() -> None:
    async with anystreamer.open_engine(model, model.tokenizer) as opened:
        async with opened.stream_text("hi") as stream:
            await stream.read()


async def opening() -> None:
    """Opens and closes engines and streams all the time."""
    while True:
        async with anystreamer.open_engine(model, model.tokenizer) as opened:
            async with opened.stream_text("hi") as stream:
                await stream.receive()


def without_a_loop() -> None:
    with sync.stream_text(model, model.tokenizer, "hi") as stream:
        stream.read()


OWNERS: list[Callable[[], Awaitable[None]]] = [bridge, bounded, text, engine, opening]


def run(func: Callable[[], Awaitable[None]], loop: str) -> None:
    options: dict[str, Any] = {"use_uvloop": True} if loop == "uvloop" else {}
    backend = "trio" if loop == "trio" else "asyncio"
    anyio.run(func, backend=backend, backend_options=options)


def run_child(loop: str, owner: int, report: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(PATIENCE - 0.5, repeat=True)
    os.write(report, b".")
    try:
        if owner < len(OWNERS):
            run(OWNERS[owner], loop)
        else:
            without_a_loop()
    finally:
        # Without a loop, a Ctrl-C while a stream opens stops the model, and does not wait for it.
        if owner < len(OWNERS) and (inside or model.is_generating):
            os.write(report, b"running")


class Process:
    """A fork of this process, and when it gets Ctrl-Cs."""

    def __init__(self, loop: str, owner: int, times: list[float]) -> None:
        self.name = f"{loop} {owner} {times}"
        self.times = times
        self.more = 0  # Ctrl-Cs, after those at *times*
        self._errors = os.memfd_create("stderr")
        self._read, report = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.dup2(self._errors, 2)
            run_child(loop, owner, report)
            sys.exit()
        os.close(report)
        os.read(self._read, 1)
        self.began = time.monotonic()

    def poll(self) -> str | None:
        """Send the Ctrl-Cs that are due.

        Returns None while the process runs. Then it returns what went wrong, or an empty text.
        """
        elapsed = time.monotonic() - self.began
        if os.waitpid(self.pid, os.WNOHANG)[0]:
            needed = f"needed {self.more} more" if self.more else ""
            left = os.read(self._read, 100).decode()
            return f"{self.name}: {needed}{left}\n{self._stacks()}" if needed or left else ""
        while self.times and self.times[0] < elapsed:
            self.times.pop(0)
            os.kill(self.pid, signal.SIGINT)
        if elapsed < PATIENCE + self.more:
            return None
        if self.more < MORE:
            self.more += 1
            os.kill(self.pid, signal.SIGINT)
            return None
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return f"{self.name}: hangs\n{self._stacks()}"

    def _stacks(self) -> str:
        os.lseek(self._errors, 0, os.SEEK_SET)
        return os.read(self._errors, 20_000).decode()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._errors)


def main(loop: str, ctrl_cs: int, processes: int, seed: int) -> None:
    for each in {loop, "asyncio"}:  # a Ctrl-C that strikes an import can be ignored by Python
        run(nothing, each)
    rng = random.Random(seed)
    running: list[Process] = []
    started = 0
    while started < processes or running:
        if started < processes and len(running) < AT_ONCE:
            times = sorted(rng.uniform(0, SPAN) for _ in range(ctrl_cs))
            running.append(Process(loop, started % (len(OWNERS) + 1), times))
            started += 1
        for process in list(running):
            complaint = process.poll()
            if complaint is not None:
                process.close()
                running.remove(process)
            if complaint:
                print(complaint, flush=True)
        time.sleep(0.0005)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
