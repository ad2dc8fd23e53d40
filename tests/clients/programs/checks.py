"""What the clients' programs share: each tries the ways of its client, and says what came of them.

A program runs where its client is installed, and nothing of this project: only the standard library
can be imported here.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

URL = os.environ["SERVER_URL"]
V1 = f"{URL}/v1"
MODEL = os.environ["SERVER_MODEL"]
MODEL_FOLDER = os.environ["MODEL_FOLDER"]
KEY = os.environ["OPENAI_API_KEY"]

COUNT = "Count, please."
COUNTED = "one, two, three, four, five, six, seven, eight, nine, ten"
WEATHER = "How is the weather in Paris?"
# The model goes on until it has made all of them, which takes it much longer than any client.
ENDLESS, LIMIT = "Tick for ever.", 20_000

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": PARAMETERS,
    },
}


def metric(name: str) -> float:
    """A figure of the server's."""
    with urllib.request.urlopen(f"{URL}/metrics") as response:
        text = response.read().decode()
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def tokens_made() -> float:
    """Tokens that the model has made since the server was started."""
    return metric("anystreamer_computed_tokens_total")


def until_running() -> None:
    """Wait until the model generates."""
    while not metric("anystreamer_requests_running"):
        time.sleep(0.01)


_made_before = 0.0


def until_stopped() -> None:
    """Wait until the model has stopped. It has to be long before the answer's own end."""
    while metric("anystreamer_requests_running"):
        time.sleep(0.05)
    made = tokens_made() - _made_before
    assert made < LIMIT / 2, f"the model made {made:.0f} tokens"


async def cancel_while_running(answer: Coroutine[Any, Any, Any]) -> None:
    """Await an answer in a task, cancel that while the model generates, and wait for its stop."""
    task = asyncio.create_task(answer)
    await asyncio.to_thread(until_running)
    task.cancel()
    await asyncio.to_thread(until_stopped)


def try_all(package: str, **ways: Callable[[], Any] | str) -> None:
    """Try each way, and write what came of it into the file that the program was given.

    Args:
        package: the client's distribution.
        ways: for each way a function, whose docstring says what of the client it uses, and which
            raises if it does not work; or why the client has no such way.
    """
    global _made_before
    results = {}
    for name, way in ways.items():
        if isinstance(way, str):
            results[name] = {"uses": "", "outcome": way}
            continue
        outcome = "yes"
        _made_before = tokens_made()
        try:
            result = way()
            if inspect.isawaitable(result):
                asyncio.run(_result_of(result))
        except Exception as exc:
            traceback.print_exc()
            line = " ".join(str(exc).split())
            outcome = f"WRONG: {type(exc).__name__}: {line[:300]}"
        results[name] = {"uses": inspect.getdoc(way), "outcome": outcome}
    Path(sys.argv[1]).write_text(json.dumps({"version": version(package), "ways": results}))


async def _result_of(awaitable: Any) -> Any:
    return await awaitable
