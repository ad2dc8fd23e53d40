"""Programs that start in a fork of a process that has imported torch and transformers.

The imports take seconds. The rest of such a program takes very little time.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TextIO

__all__ = ["Program", "WarmProgram", "start_program"]

# Not this library, or others that it uses: programs can hide them, or report which ones are loaded.
PRELOADED = ["torch", "transformers.models.auto", "transformers.models.llama.modeling_llama"]


class WarmProgram:
    """What tests need of `subprocess.Popen`, for `python -m` and `python -c`. Not on Windows."""

    def __init__(
        self,
        *command: str,
        env: dict[str, str],
        joined: bool = False,
        given: str | None = None,
        terminal: int | None = None,
    ) -> None:
        """Start it.

        Args:
            command: what comes after `python`.
            env: its environment.
            joined: standard error goes to standard output, and `stderr` is None.
            given: its standard input, a few lines at most.
            terminal: a file descriptor to which its output goes. `stdout` is then empty.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        reader, writer = context.Pipe(duplex=False)
        if terminal is not None:
            writer.close()
            writer = Connection(os.dup(terminal), readable=False)
        error_reader, error_writer = (None, writer) if joined else context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(command, env, writer, error_writer, given), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid or 0
        self.stdout = _file(reader)
        self.stderr = _file(error_reader) if error_reader else None
        writer.close()
        error_writer.close()

    def __enter__(self) -> WarmProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        if self.stderr:
            self.stderr.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"it still runs after {timeout} seconds")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes from now on, once it has ended."""
        files = [each for each in (self.stdout, self.stderr) if each]
        with ThreadPoolExecutor(len(files)) as threads:
            output, *errors = threads.map(lambda file: file.read(), files)
        self.wait(timeout)
        return output, "".join(errors)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Program = subprocess.Popen[str] | WarmProgram


def start_program(*command: str, env: dict[str, str], joined: bool = False) -> Program:
    """Start a `WarmProgram`, or on systems other than Linux an ordinary one."""
    if sys.platform == "linux":
        return WarmProgram(*command, env=env, joined=joined)
    return subprocess.Popen(
        [sys.executable, *command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if joined else subprocess.PIPE,
        encoding="utf-8",
    )


def _file(reader: Connection) -> TextIO:
    with reader:
        return os.fdopen(os.dup(reader.fileno()), encoding="utf-8")


def _output(fd: int, encoding: str, **options: Any) -> TextIO:
    """As an interpreter opens it."""
    return io.TextIOWrapper(os.fdopen(fd, "wb", closefd=False), encoding=encoding, **options)


def _run(
    command: tuple[str, ...],
    env: dict[str, str],
    output: Connection,
    errors: Connection,
    given: str | None,
) -> None:
    """Become the program: its environment, its streams, its arguments."""
    os.environ.clear()
    os.environ.update(env)
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    output.close()
    errors.close()
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = _output(1, encoding)
    sys.stderr = _output(2, encoding, errors="backslashreplace", line_buffering=True)
    if given is not None:
        reader, writer = os.pipe()
        os.write(writer, given.encode(encoding))
        os.close(writer)
        os.dup2(reader, 0)
        os.close(reader)
        sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    kind, program, *arguments = command
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(program, {"__name__": "__main__"})
