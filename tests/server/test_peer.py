"""The same requests to ``transformers serve`` and to ours: the same answers, in the same shape.

Both are the real programs, on the embedded model.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from anystreamer.demo import load_demo

from ..helpers.scripted import PROGRAM_PATIENCE
from ..helpers.serving import data_of
from ..helpers.warm_programs import Program, start_program

pytest.importorskip("fastapi", reason="transformers serve needs it")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]  # two programs import torch

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

TRANSFORMERS = "from transformers.cli.transformers import main; main()"
ANYSTREAMER = "from anystreamer.cli import main; main()"


@contextlib.contextmanager
def program(code: str, model: Path) -> Iterator[Program]:
    command = ("-c", code, "serve", str(model), "--host", "127.0.0.1", "--port", "0")
    # Two of torch's threads in each of them would wait for each other.
    env = os.environ | {"ANYSTREAMER_API_KEY": "", "OMP_NUM_THREADS": "1"}
    with start_program(*command, env=env, joined=True) as process:
        try:
            yield process
        finally:
            process.kill()


def client_of(process: Program) -> httpx.Client:
    """A client, once the server says where it is."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if address := re.search(r"on (http://[\d.:]+)", line):
            return httpx.Client(base_url=address[1], trust_env=False, timeout=PROGRAM_PATIENCE)
    raise AssertionError(said)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of theirs and of ours."""
    folder = tmp_path_factory.mktemp("model")
    for part in load_demo():
        part.save_pretrained(folder)
    with program(TRANSFORMERS, folder) as theirs, program(ANYSTREAMER, folder) as ours:
        with client_of(theirs) as one, client_of(ours) as other:
            yield one, other


def chat(*said: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": each} for i, each in enumerate(said)]}


QUESTIONS = [
    (CHAT, chat("Count from seven to twelve.")),
    (CHAT, chat("Count from one to twenty.") | {"max_tokens": 7}),
    (CHAT, chat("Count from one to twenty.") | {"max_completion_tokens": 7}),
    (CHAT, chat("Count from one to three.", "one, two, three.", "Count from four to six.")),
    (TEXT, {"prompt": "An increasing sequence: one,", "max_tokens": 20}),
    (TEXT, {"prompt": "The hours:", "max_tokens": 1}),
]


@pytest.mark.parametrize(("path", "question"), QUESTIONS)
def test_a_whole_answer(both: Any, path: str, question: dict[str, Any]) -> None:
    theirs, ours = (each.post(path, json={**question, "temperature": 0.0}) for each in both)
    assert theirs.status_code == ours.status_code == 200
    one, other = theirs.json(), ours.json()
    assert one["object"] == other["object"]
    assert one["usage"] == other["usage"]
    (choice,), (our_choice,) = one["choices"], other["choices"]
    assert_has(other, one)
    # Whatever they say, we say, and the same.
    assert {**our_choice, **choice, "message": None} == {**our_choice, "message": None}
    message, our_message = choice.get("message", {}), our_choice.get("message", {})
    assert {**our_message, **message} == our_message


@pytest.mark.parametrize(("path", "question"), QUESTIONS)
def test_an_answer_in_chunks(both: Any, path: str, question: dict[str, Any]) -> None:
    body = {
        **question,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    theirs, ours = (each.post(path, json=body) for each in both)
    assert theirs.headers["content-type"] == ours.headers["content-type"]
    chunks, our_chunks = data_of(theirs.text), data_of(ours.text)
    # The end that OpenAI's API has, and theirs has not; and their usage comes with the last choice.
    assert our_chunks.pop() == "[DONE]"
    assert chunks[-1] != "[DONE]"
    usage = our_chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"] == chunks[-1]["usage"]
    for chunk in our_chunks:
        assert_has(chunk, chunks[0])
        assert chunk["object"] == chunks[0]["object"]
        assert_has(chunk["choices"][0], chunks[0]["choices"][0])
    assert text_of(chunks) == text_of(our_chunks)
    reasons = [
        [chunk["choices"][0].get("finish_reason") for chunk in each]
        for each in (chunks, our_chunks)
    ]
    assert reasons[0][-1] == reasons[1][-1] in ("stop", "length")
    assert {*reasons[0][:-1], *reasons[1][:-1]} <= {None}
    if path == CHAT:
        first, our_first = (each[0]["choices"][0]["delta"] for each in (chunks, our_chunks))
        assert first["role"] == our_first["role"] == "assistant"


def assert_has(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Ours has every field that theirs has."""
    assert theirs.keys() <= ours.keys()


def text_of(chunks: list[Any]) -> str:
    choices = [chunk["choices"][0] for chunk in chunks]
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "")
        for choice in choices
    )
