"""Ctrl-Cs at random moments, to many processes: each of them ends, with its worker joined."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from ..helpers.scripted import NATIVE_LOOPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the program forks, and keeps its output"),
]

LOOPS = ["asyncio", *(["uvloop"] if "uvloop" in str(NATIVE_LOOPS) else []), "trio"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.nightly  # at random moments, also where the promises say that nothing can be done
@pytest.mark.parametrize("ctrl_cs", [1, 2, 3])
@pytest.mark.parametrize("processes", [24, pytest.param(1500, marks=pytest.mark.timeout(3600))])
def test_processes_that_are_interrupted_at_any_moment_end(
    loop: str, ctrl_cs: int, processes: int
) -> None:
    """A third Ctrl-C makes asyncio's runner give up its tasks: see promises.md.

    trio has a few places where a Ctrl-C damages its own state. After that, further ones end the
    program.
    """
    if loop == "trio":
        pytest.importorskip("trio")
    seed = str(random.randrange(10**6))
    numbers = str(ctrl_cs), str(processes), seed
    # Warnings: from Python 3.12 on, of each fork beside a thread.
    program = [sys.executable, "-W", "ignore", "-m", "tests.helpers.interrupted", loop, *numbers]
    ran = subprocess.run(program, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    # Without the stacks below each: they have lines of the program, with these words in them.
    complaints = re.findall(rf"^{loop} \d \[.*\]: (.*)$", ran.stdout, re.MULTILINE)
    assert not [each for each in complaints if "hangs" in each or "running" in each], ran.stdout
    needed = [each for each in complaints if "needed" in each]
    most = 1 + processes // 100 if loop == "trio" or ctrl_cs == 3 else 0
    assert len(needed) <= most, ran.stdout
