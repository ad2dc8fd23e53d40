"""aider: its coder, as its command makes it, with a server of OpenAI's API."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

# It reads the environment first.
os.environ |= {"OPENAI_API_BASE": os.environ["OPENAI_BASE_URL"], "AIDER_ANALYTICS": "false"}

from aider.coders import Coder
from aider.io import InputOutput
from aider.models import Model

import checks

NAME = f"openai/{checks.MODEL}"


def coder(**kwargs: Any) -> Coder:
    silent = InputOutput(pretty=False, yes=True, fancy_input=False)
    chosen = {"use_git": False, "suggest_shell_commands": False, **kwargs}
    return Coder.create(Model(NAME), "whole", silent, **chosen)


def start(home: str, text: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aider", "--model", NAME, "--yes-always", "--no-git"]
    quiet = ["--no-show-model-warnings", "--no-check-update", "--analytics-disable"]
    return subprocess.Popen(
        [*command, *quiet, *options, "--message", text],
        cwd=home,
        env={**os.environ, "HOME": home},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def whole() -> None:
    """`Coder(stream=False)`, and a second question; `aider --message` with `--no-stream`"""
    talk = coder(stream=False)
    for _ in range(2):
        talk.run(checks.COUNT)
        assert talk.partial_response_content == checks.COUNTED
    with (
        tempfile.TemporaryDirectory() as home,
        start(home, checks.COUNT, "--no-stream") as command,
    ):
        printed, _ = command.communicate()
    assert checks.COUNTED in " ".join(printed.split()), printed


def stream() -> None:
    """`Coder.run_stream`"""
    talk = coder(stream=True)
    assert "".join(talk.run_stream(checks.COUNT)) == checks.COUNTED


def cancel() -> None:
    """ending the command, with and without a stream"""
    for option in ("--stream", "--no-stream"):
        with (
            tempfile.TemporaryDirectory() as home,
            start(home, checks.ENDLESS, option) as command,
        ):
            checks.until_running()
            command.terminate()
            command.communicate()
            checks.until_stopped()


checks.try_all(
    "aider-chat",
    whole=whole,
    stream=stream,
    tools="it reads edits from the text",
    forced_tool="it reads edits from the text",
    structured="it reads edits from the text",
    cancel=cancel,
)
