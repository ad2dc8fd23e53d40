"""Ends a test or a session that hangs, and prints the stacks of all threads and tasks to stderr.

pytest-timeout prints to stdout, which a worker of pytest-xdist does not have: there, a test that
hung ended the worker without any message.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import threading
import time
from types import CoroutineType
from typing import Any, TextIO

import pytest
import pytest_timeout  # type: ignore[import-untyped]

__all__ = [
    "pytest_configure",
    "pytest_runtest_setup",
    "pytest_timeout_set_timer",
    "pytest_unconfigure",
]

# Seconds of delay: faulthandler ends the process this much later than our own thread should have,
# and the main process of a session ends this much later than its workers, so that they print first.
MARGIN = 30.0


class _Session:
    """When this process has to end, and where it prints the stacks."""

    def __init__(self, config: pytest.Config) -> None:
        seconds = config.getoption("session_timeout") or float(config.getini("session_timeout"))
        is_worker = hasattr(config, "workerinput")
        self.ends_at = time.monotonic() + seconds + (0 if is_worker else MARGIN)
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            self.stderr: TextIO = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")

    def arm(self) -> None:
        """Start the session's timer, again for each test: pytest stops it when a test fails."""
        left = max(self.ends_at - time.monotonic(), 1.0)
        faulthandler.dump_traceback_later(left, exit=True, file=self.stderr)

    def end(self, item: pytest.Item, seconds: float) -> None:
        if pytest_timeout.is_debugging():
            return
        # faulthandler needs no GIL: it ends the process if this thread cannot.
        faulthandler.dump_traceback_later(MARGIN, exit=True, file=self.stderr)
        capture = item.config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture(in_=False)
        output = "".join(capture.read_global_capture())
        print(
            f"\n+++ {item.nodeid} did not end within {seconds:g} seconds +++",
            *([f"captured output:\n{output}"] if output else []),
            *_awaiting(),
            sep="\n",
            file=self.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=self.stderr)
        os._exit(1)


_session = pytest.StashKey[_Session]()


def _awaiting() -> list[str]:
    """Where each task waits: the thread of an event loop shows only the one that runs."""
    coroutines = [
        each
        for each in gc.get_objects()
        if isinstance(each, CoroutineType) and each.cr_frame is not None
    ]
    inner = {id(each.cr_await) for each in coroutines}
    lines = []
    for outermost in coroutines:
        if id(outermost) not in inner:
            lines.append("Task (most recent call last):")
            awaited: Any = outermost
            while awaited is not None:
                described, awaited = _step(awaited)
                lines.append(f"  {described}")
    return lines


def _step(awaited: Any) -> tuple[str, Any]:
    """Where an awaitable is, and what it awaits there."""
    for kind, then in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
        if (frame := getattr(awaited, f"{kind}_frame", None)) is not None:
            code = frame.f_code
            where = f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'
            return where, getattr(awaited, then)
    return repr(awaited), None


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_session] = session = _Session(config)
    session.arm()


def pytest_unconfigure() -> None:
    faulthandler.cancel_dump_traceback_later()


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_session].arm()


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Replaces pytest-timeout's timer. Its other hook calls `item.cancel_timeout` to cancel it."""
    session = item.config.stash[_session]
    timer = threading.Timer(settings.timeout, session.end, (item, settings.timeout))
    timer.name = f"timeout of {item.nodeid}"

    def cancel() -> None:
        timer.cancel()
        timer.join()

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    timer.start()
    return True
