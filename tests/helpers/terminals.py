"""Runs a program on a terminal of its own: a test types keys, and reads what the program shows."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte

from .scripted import PROGRAM_PATIENCE

__all__ = ["Terminal", "terminal"]

# A session gets the Ctrl-C of the first terminal that it opens.
TAKE_TERMINAL = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR))\n"

# Variables of the environment that would change colours, widths and encodings.
UNSET = {"FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PYTHONIOENCODING", "COLUMNS", "LINES"}


class Terminal:
    """Its two sides: the keyboard and the screen, with all that has scrolled off it."""

    def __init__(
        self, master: int, process: subprocess.Popen[bytes], size: tuple[int, int]
    ) -> None:
        self.process = process
        self.output = b""
        self.screen = pyte.HistoryScreen(*size, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.master = master

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C at a prompt that has been shown.

        It wakes readline only while that waits for a key. A Ctrl-C between the prompt and this wait
        is noticed after the next line. Linux shows whether the program waits.
        """
        status = Path(f"/proc/{self.process.pid}/stat")
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.001)
        self.type("\x03")

    @property
    def text(self) -> str:
        """All that has been shown, as it stands now."""
        above = ["".join(line[x].data for x in sorted(line)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    def until(self, pattern: str, times: int = 1) -> str:
        """Read until *pattern* is on the screen, *times* times. Returns all text of the screen."""
        deadline = time.monotonic() + PROGRAM_PATIENCE
        while len(re.findall(pattern, self.text)) < times:
            if not self._read(deadline):
                raise AssertionError(f"no {pattern!r}, but:\n{self.text}")
        return self.text

    def end(self) -> int:
        """Read to the end. Returns the exit code."""
        deadline = time.monotonic() + PROGRAM_PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
        try:
            piece = os.read(self.master, 65536) if ready else b""
        except OSError:  # Linux's end of file
            piece = b""
        self.output += piece
        self._stream.feed(piece)
        return bool(piece)


@contextmanager
def terminal(
    code: str, *arguments: str, size: tuple[int, int] = (80, 24), **env: str
) -> Iterator[Terminal]:
    """Run a Python program with *code* and *arguments* on a new terminal."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    columns, lines = size
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    kept: dict[str, Any] = {name: os.environ[name] for name in os.environ.keys() - UNSET}
    defaults = {"TERM": "xterm-256color", "PYTHONUTF8": "1", "INPUTRC": os.devnull}
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL + code, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=kept | defaults | env,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process, size)
    finally:
        process.kill()
        process.wait()
        os.close(master)
