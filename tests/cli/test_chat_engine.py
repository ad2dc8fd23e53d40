"""The engine of a chat: a turn reads only what is new, also after an answer that was stopped."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("typer")

from anystreamer import TextStream
from anystreamer.cli.chat_backends import LocalModel, RemoteModel
from anystreamer.cli.chat_commands import Conversation
from anystreamer.cli.chat_settings import SETTINGS
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PROGRAM_TIMEOUT

QUESTIONS = ["Count from one to ninety.", "Count from seven to twelve.", "And from two to five."]


@contextmanager
def tokens_read(model: Any) -> Iterator[list[list[int]]]:
    """The ids that each forward pass of a model is given."""
    read: list[list[int]] = []

    def note(_: object, args: object, kwargs: dict[str, Any]) -> None:
        read.append(kwargs["input_ids"][0].tolist())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


def encoded(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return [int(each) for each in ids]


def greedy(model: Any, tokenizer: Any, ids: list[int], limit: int) -> list[int]:
    """What `generate()` alone makes of a prompt."""
    import torch

    output = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=limit,
    )
    return [int(each) for each in output[0, len(ids) :]]


@pytest.mark.torch
@pytest.mark.parametrize("stops_at", [None, 1, 7])
async def test_a_turn_reads_only_what_is_new(stops_at: int | None) -> None:
    """Whether the first answer was whole, or stopped as by Ctrl-C. The ids are those of no cache"""
    from anystreamer.demo import load_demo

    model, tokenizer = load_demo()
    backend, conversation = LocalModel(model, tokenizer, "demo", 40), Conversation("Be nice.")
    known: list[int] = []
    async with backend.open() as engine:
        for turn, question in enumerate(QUESTIONS):
            messages = conversation.messages_with(question)
            ids = encoded(tokenizer, messages)
            with tokens_read(model) as read:
                async with engine.stream_text(messages, **backend.arguments({})) as stream:
                    async for _ in stream:
                        if turn == 0 and len(stream.token_ids) == stops_at:
                            stream.stop()
            assert stream.usage is not None
            new = len(ids) - stream.usage.cached_tokens
            assert [len(each) for each in read if len(each) > 1] == [new]
            assert read[0] == ids[-new:]
            if turn:  # the question, and what the template puts around it
                assert stream.usage.cached_tokens >= len(known) > new
            if turn or stops_at is None:
                assert stream.token_ids == greedy(model, tokenizer, ids, 40)
            known = ids
            conversation.add(question, stream.text)


@pytest.mark.torch
async def test_one_conversation_is_kept_and_a_retry_goes_on_from_it() -> None:
    from anystreamer.demo import load_demo

    model, tokenizer = load_demo()
    backend = LocalModel(model, tokenizer, "demo", 12)

    async def ask(question: str) -> TextStream:
        messages = [{"role": "user", "content": question}]
        async with engine.stream_text(messages, **backend.arguments({})) as stream:
            await stream.read()
        return stream

    async with backend.open() as engine:
        first, again, other = await ask("Count. " * 9), await ask("Count. " * 9), await ask("Hi")
        assert again.usage is not None
        assert other.usage is not None
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert again.token_ids == first.token_ids
        assert other.usage.cached_tokens < other.usage.prompt_tokens - 1
        # The first one has made room.
        assert ((await ask("Count. " * 9)).usage or other.usage).cached_tokens < 5


@pytest.mark.torch
async def test_a_seed_repeats_an_answer() -> None:
    from anystreamer.demo import load_demo

    model, tokenizer = load_demo()
    backend = LocalModel(model, tokenizer, "demo", 20)
    settings = [{"temperature": 2.0, "seed": seed} for seed in (7, 7, 8)]
    texts = []
    async with backend.open() as engine:
        for each in settings:
            messages = [{"role": "user", "content": "Count."}]
            async with engine.stream_text(messages, **backend.arguments(each)) as stream:
                texts.append(await stream.read())
    assert texts[0] == texts[1] != texts[2]


def test_a_seed_that_cannot_be_used_is_refused_and_a_server_gets_it() -> None:
    model = ScriptedModel(["a"])
    with pytest.raises(ValueError, match="this model takes no seed"):
        LocalModel(model, model.tokenizer, "scripted", 5).arguments({"seed": 7})
    backend = RemoteModel("http://localhost", "name", None, None)
    assert backend.arguments({"seed": 7, "top_p": 0.5}) == {
        "extra_body": {"seed": 7},
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.5,
    }


def test_the_page_and_the_terminal_have_the_same_settings() -> None:
    html = files("anystreamer.server").joinpath("page", "chat.html").read_text()
    form = html[html.index('<form id="settings-form">') :]
    inputs = re.findall(r"<input ([^>]*)>", form[: form.index("</form>")])
    shown = {}
    for each in inputs:
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', each))
        assert attributes["type"] == "number"
        # Without "any", a browser takes whole numbers only.
        kind = float if attributes.get("step") == "any" else int
        shown[attributes["name"]] = (kind, float(attributes["min"]), float(attributes["max"]))
    assert shown == {
        name: (each.kind, each.minimum, each.maximum) for name, each in SETTINGS.items()
    }


# -- on a terminal

# A forward pass takes a moment, so that Ctrl-C finds an answer that has not ended.
PROGRAM = """
import json, time
from anystreamer import cli
from anystreamer.cli import common
from anystreamer.demo import load_demo

model, tokenizer = load_demo()
read = []

def note(module, args, kwargs):
    read.append(kwargs["input_ids"][0].tolist())
    time.sleep(0.02)

model.register_forward_pre_hook(note, with_kwargs=True)
common.load_embedded = lambda: (model, tokenizer)
try:
    cli.main()
finally:
    with open({told!r}, "w") as file:
        json.dump(read, file)
"""


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(PROGRAM_TIMEOUT)
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.variant)])
def test_ctrl_c_leaves_a_cache_that_the_next_turn_uses(backend: str, tmp_path: Path) -> None:
    from anystreamer.demo import load_demo

    from ..helpers.terminals import terminal

    told = tmp_path / "told"
    code = PROGRAM.format(told=str(told))
    with terminal(code, "chat", "--backend", backend, size=(1000, 24)) as chat:
        chat.until(r"\n>$")
        chat.type(f"{QUESTIONS[0]}\n")
        chat.until("one, two, three")
        chat.type("\x03")
        shown = chat.until(r"stopped, \d+ tokens.*\n\n?>$")
        chat.type(f"{QUESTIONS[1]}\n")
        chat.until(r"eos, \d+ tokens.*\n\n?>$")
        chat.type("\x04")
        assert chat.end() == 0
    answered = re.search(r"ninety\.\n(one, .*)\nstopped, (\d+)", shown)
    assert answered
    model, tokenizer = load_demo()
    conversation = Conversation(None)
    conversation.add(QUESTIONS[0], answered[1])
    prompt = encoded(tokenizer, conversation.messages_with(QUESTIONS[1]))
    first: list[int] = []
    second: list[int] = []
    for ids in json.loads(told.read_text()):
        if len(ids) > 1 and first:  # the prompt of the second turn
            second = ids
        elif second:
            second = [*second, *ids]
        else:
            first = [*first, *ids]
    # Only what is new was read, and the rest of it is what the model makes without a cache.
    whole = prompt + greedy(model, tokenizer, prompt, 100)
    assert whole[-1 - len(second) : -1] == second
    assert whole[: len(whole) - 1 - len(second)] == first[: len(whole) - 1 - len(second)]
    assert len(whole) - 1 - len(second) > len(prompt) // 2
