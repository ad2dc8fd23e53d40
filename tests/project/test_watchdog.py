"""A run of tests always ends, and says where it hung. Each here is a run of pytest by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HANGS = """
import threading

import anyio


def test_a_thread():
    print("before")
    threading.Event().wait()


def test_a_task():
    async def waits_for_a_word():
        await anyio.Event().wait()

    anyio.run(waits_for_a_word)


def test_after_it():
    pass
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it in a worker, as the whole suite is. Other plugins take time to import."""
    (folder / "test_hangs.py").write_text(HANGS, encoding="utf-8")
    return subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                f"--rootdir={folder}",
                *("-p", "xdist", "-p", "pytest_timeout", "-p", "tests.helpers.watchdog"),
            ),
            *("-n", "1", "--dist", "loadfile", "--max-worker-restart=0", str(folder), *options),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"), [("test_a_thread", "in wait"), ("test_a_task", "in waits_for_a_word")]
)
def test_a_test_that_hangs_ends_the_run_and_says_where(
    tmp_path: Path, name: str, where: str
) -> None:
    done = run(tmp_path, "--timeout=2", "--session-timeout=1000", "-k", f"{name} or after")
    assert done.returncode == 1
    assert f"{name} did not end within 2 seconds" in done.stderr
    assert where in done.stderr
    assert ("captured output:\nbefore" in done.stderr) == (name == "test_a_thread")
    assert "worker restarting disabled" in done.stdout


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_with_its_stacks(tmp_path: Path) -> None:
    done = run(tmp_path, "--timeout=0", "--session-timeout=4", "-k", "thread")
    assert done.returncode == 1
    assert "Timeout (0:00:0" in done.stderr
    assert "(most recent call first)" in done.stderr
