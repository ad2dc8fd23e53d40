"""`response_format` with continuous batching: each request keeps to a form of its own."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from anyio import create_task_group, to_thread, wait_all_tasks_blocked

from anystreamer import Choice, FinishReason, Regex, open_engine
from anystreamer.demo import load_demo

from ..helpers.batchings import BATCHINGS
from ..helpers.tiny_models import steps_of

llguidance = pytest.importorskip("llguidance")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not hasattr(transformers, "ContinuousBatchingConfig"), reason="transformers is too old"
    ),
]

SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": ["one", "two"]}, "m": {"type": "boolean"}},
    "required": ["n", "m"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampling", [False, True])
async def test_each_request_keeps_to_its_own_form(sampling: bool) -> None:
    model, tokenizer = load_demo()
    forms: list[Any] = [SCHEMA, Choice(["yes", "no"]), None, Regex("[a-f]{20}"), Regex("[0-9]{3}")]
    kwargs: dict[str, Any] = {"do_sample": True, "temperature": 1.5} if sampling else {}
    found: dict[int, Any] = {}

    async with open_engine(model, tokenizer, batching="continuous") as engine:

        async def ask(number: int) -> None:
            form = forms[number % len(forms)]
            async with engine.stream_text(
                f"Count {number}: one,", response_format=form, max_new_tokens=80, **kwargs
            ) as stream:
                await stream.read()
            found[number] = stream

        async with create_task_group() as tasks:
            for number in range(15):
                tasks.start_soon(ask, number)
    for number, stream in found.items():
        form = forms[number % len(forms)]
        if form is None:
            assert stream.parsed is None
            continue
        assert stream.finish_reason is FinishReason.EOS
        if form is SCHEMA:
            assert stream.parsed == json.loads(stream.text)
            assert list(stream.parsed) == ["n", "m"]
        else:
            assert stream.parsed == stream.text
    assert {len(found[3].text), len(found[8].text)} == {20}
    assert found[1].text in ("yes", "no")


async def test_it_makes_the_tokens_of_an_engine_without_batching() -> None:
    model, tokenizer = load_demo()
    answers = []
    for batching in ("none", "continuous"):
        async with open_engine(model, tokenizer, batching=batching) as engine:
            async with engine.stream_text(
                "Count: one,", response_format=SCHEMA, max_new_tokens=80
            ) as stream:
                await stream.read()
        answers.append((stream.token_ids, stream.parsed))
    assert answers[0] == answers[1]


async def test_an_answer_that_is_cut_is_not_parsed() -> None:
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer, batching="continuous") as engine:
        async with engine.stream_text(
            "x", response_format=Regex("[a-z]{300}"), max_new_tokens=5
        ) as stream:
            await stream.read()
        assert (stream.finish_reason, stream.parsed) == (FinishReason.LENGTH, None)
        async with engine.stream_text(
            "x", response_format=Regex("[a-z]{300}"), max_new_tokens=300
        ) as stream:
            await stream.receive()
        assert stream.parsed is None
        with pytest.raises(ValueError, match="not valid"):
            async with engine.stream_text("x", response_format=Regex("("), max_new_tokens=5):
                pass
        async with engine.stream_text(
            "x", response_format=Choice(["ok"]), max_new_tokens=5
        ) as stream:
            assert await stream.read() == "ok"  # the others did no harm
        assert stream.parsed == "ok"


@pytest.mark.parametrize("batching", ["none", "continuous"])
async def test_a_form_that_becomes_too_complex_ends_its_own_answer_with_an_error(
    batching: Any,
) -> None:
    """After the text until then; and no token that the form does not have."""
    wide = {"anyOf": [{"type": "object", "properties": {f"p{n}": {}}} for n in range(1000)]}
    properties: dict[str, Any] = {"n": {"enum": ["one", "two"]}, "m": wide}
    form = {**SCHEMA, "properties": properties}
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer, batching=batching) as engine:
        for has_logprobs in (False, True):
            text, logprobs = "", 0
            with pytest.raises(ValueError, match="response_format is too complex"):
                async with engine.stream_text(
                    "x", response_format=form, max_new_tokens=80, logprobs=has_logprobs
                ) as stream:
                    async for chunk in stream:
                        text += chunk
                        logprobs += len(chunk.logprobs or ())
            said = text.replace(" ", "").removesuffix("{")  # the token that was too much
            assert said in ('{"n":"one","m":', '{"n":"two","m":')
            assert stream.parsed is None
            assert logprobs == (len(stream.token_ids) if has_logprobs else 0)
        async with engine.stream_text(
            "x", response_format=Choice(["ok"]), max_new_tokens=5
        ) as stream:
            assert await stream.read() == "ok"


async def test_it_is_refused_where_steps_are_prepared_in_advance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokenizer = load_demo()
    async with open_engine(model, tokenizer, batching="continuous") as engine:
        # No CPU has it, so the setting of a manager that runs is changed.
        config = engine.manager.continuous_batching_config  # type: ignore[attr-defined]
        monkeypatch.setattr(config, "use_async_batching", True)
        with pytest.raises(ValueError, match="asynchronous batching"):
            engine.stream_text("x", response_format="json")


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_a_request_that_leaves_while_forms_are_compiled_costs_no_step(
    batching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is being compiled, which goes on; the other one's turn has not come."""
    model, tokenizer = load_demo()
    begun, goes_on, compiled = threading.Event(), threading.Event(), []
    original = llguidance.LLMatcher

    def held(llguidance_tokenizer: Any, grammar: str, **kwargs: Any) -> Any:
        compiled.append(grammar)
        begun.set()
        goes_on.wait(60)
        return original(llguidance_tokenizer, grammar, **kwargs)

    monkeypatch.setattr(llguidance, "LLMatcher", held)
    async with open_engine(model, tokenizer, batching=batching) as engine:

        async def ask(expression: str) -> None:
            form = Regex(expression)
            async with engine.stream_text("one,", response_format=form, max_new_tokens=3):
                pytest.fail("entered")

        with steps_of(model) as steps:
            async with create_task_group() as tasks:
                tasks.start_soon(ask, "[a-c]{17}")
                await to_thread.run_sync(begun.wait, 60)
                tasks.start_soon(ask, "[a-c]{18}")
                await wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
                goes_on.set()
        assert steps.count == 0
        assert len(compiled) == 1
        assert "{17}" in compiled[0]
        # The engine serves the next one, for which it is known already.
        async with engine.stream_text(
            "one,", response_format=Regex("[a-c]{17}"), max_new_tokens=40
        ) as stream:
            assert len(await stream.read()) == 17
    assert len(compiled) == 1
