"""Streamlit's chat over an engine, as its page has it: a browser asks, and stops the answer."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from .conftest import installed
from .helpers.chromium import launched
from .helpers.frameworks import skip_without
from .helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT, until

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "streamlit.md"

# At the end of each run of the script.
STATISTICS = """
now = engine.statistics()
print("running", now.running, "computed", now.computed_tokens, flush=True)
"""
# In place of the embedded model: it goes on for minutes, so that no click comes too late.
SLOW_MODEL = """
from anystreamer.testing import ScriptedModel


def load_demo():
    model = ScriptedModel(["seven, ", "eight, "] * 5_000, delay=0.02)
    return model, model.tokenizer
"""


@pytest.fixture(params=[pytest.param(("asyncio", {}), id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The browser's driver is for asyncio, and the application is a process of its own."""
    return request.param


def app(*, slow: bool) -> str:
    [found] = re.findall(r'^```py title="app.py"\n(.*?)^```', PAGE.read_text("utf-8"), re.S | re.M)
    code = str(found)
    if slow:
        for old, new in (
            ("from anystreamer.demo import load_demo\n", SLOW_MODEL),
            ("max_new_tokens=1_000", "max_new_tokens=10_000"),
        ):
            assert old in code
            code = code.replace(old, new)
    return code + STATISTICS


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(script: Path, port: int) -> Iterator[Path]:
    """Run the application. Yields the file with its output."""
    output = script.with_suffix(".txt")
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless=true"]
    command += [f"--server.port={port}", "--server.address=127.0.0.1"]
    command += ["--browser.gatherUsageStats=false", "--server.fileWatcherType=none"]
    with (
        output.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield output
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(PROGRAM_TIMEOUT)
@pytest.mark.parametrize("is_stopped", [False, True], ids=["whole", "stopped"])
async def test_it_answers_and_its_button_stops_the_model(is_stopped: bool, tmp_path: Path) -> None:
    if not installed("streamlit"):
        skip_without("streamlit")
    script, port = tmp_path / "app.py", free_port()
    script.write_text(app(slow=is_stopped), encoding="utf-8")
    async with launched() as browser:
        with running(script, port) as output:
            await until(lambda: "URL:" in output.read_text("utf-8"), PROGRAM_PATIENCE)
            page = await browser.new_page()
            await page.goto(f"http://127.0.0.1:{port}")
            box = page.get_by_test_id("stChatInputTextArea")
            # The first run of the script loads the model.
            await box.fill("Count from seven to twelve.", timeout=PROGRAM_PATIENCE * 1000)
            await box.press("Enter")
            answer = page.get_by_test_id("stChatMessage").nth(1)
            stop = page.get_by_test_id("stBaseButton-secondary")
            if is_stopped:
                await expect(answer).to_contain_text("eight, ")
                await stop.click()
            await expect(stop).to_have_count(0)
            await expect(answer).to_contain_text("seven, eight")
            ends = re.compile(r"running 0 computed ([1-9]\d*)")
            await until(lambda: ends.search(output.read_text("utf-8")) is not None)
    found = ends.search(output.read_text("utf-8"))
    assert found is not None
    assert int(found[1]) < 10_000 if is_stopped else found[1] == "13"
