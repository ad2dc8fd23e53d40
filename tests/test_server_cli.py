"""``anystreamer serve`` as a process: it serves, refuses what is not safe, and ends in order."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from .scripted import PATIENCE
from .serving import data_of

TEXT = "/v1/completions"


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "anystreamer", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"ANYSTREAMER_API_KEY": ""},
    )
    try:
        with process:
            yield process
            process.kill()
    except BaseException:
        process.kill()
        raise


@pytest.mark.parametrize("backend", ["uvicorn", "hypercorn-asyncio", "hypercorn-trio"])
def test_it_serves_and_ends_what_is_open_when_it_is_interrupted(backend: str) -> None:
    arguments = ("--port", "0", "--backend", backend, "--grace", "0.1", "--api-key", "key")
    with program(*arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving anystreamer-demo on http://127.0.0.1:")
        with httpx.Client(
            base_url=line.split()[-1],
            headers={"authorization": "Bearer key"},
            trust_env=False,
            timeout=PATIENCE,
        ) as client:
            assert client.get("/health").json() == {"status": "open"}
            assert client.get("/v1/models", headers={"authorization": ""}).status_code == 401
            body = {"prompt": "An increasing sequence: one,", "max_tokens": 4}
            (choice,) = client.post(TEXT, json=body).json()["choices"]
            assert choice["text"] == " two, three,"
            long = {"prompt": "Count", "n": 100, "stream": True, "temperature": 0.0}
            text = ""
            with client.stream("POST", TEXT, json=long) as response:
                for part in response.iter_text():
                    if not text:
                        process.send_signal(signal.SIGINT)
                    text += part
        *_, error, done = data_of(text)
        assert error["error"]["code"] == "engine_unavailable"
        assert done == "[DONE]"
        assert process.wait(PATIENCE) == 0
        assert process.stdout.read() == ""


def test_it_does_not_serve_everybody_without_a_key() -> None:
    with program("--host", "0.0.0.0") as process:
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "0.0.0.0 is a public address" in output


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with program("--port", str(taken.getsockname()[1])) as process:
            output, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 1
            assert output.startswith("Error: ")
            assert "Traceback" not in output
