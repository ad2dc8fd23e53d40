"""Gradio's chat interface over an engine, as its page has it: served, and asked by its client."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import installed
from .helpers.frameworks import skip_without
from .helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "gradio.md"

pytestmark = [pytest.mark.torch, pytest.mark.slow]

# Gradio and its client leave threads and tasks behind: they have a process for themselves.
CLIENT = """
import socket
import threading
import time

import uvicorn
from gradio_client import Client

listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
thread.start()
while not server.started:
    time.sleep(0.01)
client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", verbose=False)

said = list(client.submit("Count from seven to twelve.", api_name="/answer"))
assert all(said[-1].startswith(each) for each in said)
print(len(said) > 2, said[-1], flush=True)

[engine] = engines
before = engine.statistics().computed_tokens


class Endless:
    def stream_text(self, messages, max_new_tokens):
        return engine.stream_text(messages, min_new_tokens=1_500, max_new_tokens=1_500)


engines[0] = Endless()
job = client.submit("Count.", api_name="/answer")
for first in job:
    job.cancel()
    break
while engine.statistics().running:
    time.sleep(0.001)
print(engine.statistics().computed_tokens - before < 1_500, flush=True)
server.should_exit = True
thread.join()
"""


@pytest.mark.timeout(PROGRAM_TIMEOUT)
def test_it_answers_piece_by_piece_and_is_stopped() -> None:
    if not installed("gradio"):
        skip_without("gradio")
    [code] = re.findall(r'^```py title="app.py"\n(.*?)^```', PAGE.read_text("utf-8"), re.S | re.M)
    done = subprocess.run(
        [sys.executable, "-c", code + CLIENT],
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_PATIENCE,
    )
    said = "True seven, eight, nine, ten, eleven, twelve.\nTrue\n"
    assert done.stdout == said, done.stderr
