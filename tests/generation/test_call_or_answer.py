"""`response_format` beside tools: an answer is calls, or it keeps to the form."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pydantic
import pytest
from anyio import create_task_group

from anystreamer import FinishReason, Regex, open_engine, stream_batch, stream_text

from ..helpers.batchings import BATCHINGS
from ..helpers.call_templates import FAMILIES, NEEDS_RESPONSE_PARSER, QWEN, Family, tool
from ..helpers.llama_streams import finished
from ..helpers.tiny_models import Say, seeded

pytest.importorskip("llguidance")

pytestmark = [pytest.mark.torch, NEEDS_RESPONSE_PARSER]


class Pair(pydantic.BaseModel):
    a: int
    b: str = pydantic.Field(pattern="^[xy]$")


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"seconds": {"type": "integer", "maximum": 60}},
}
WAIT = tool("wait", PARAMETERS["properties"], ["seconds"], strict=True)
CALLED = {"name": "wait", "arguments": {"seconds": 7}}
ANSWER = '{"a": 3, "b": "x"}'
# What stands before an answer, in the families that write something there.
OPENS_ANSWER = {
    "harmony": "<|channel|>final<|message|>",
    "cohere": "<|START_RESPONSE|>",
    "inkling": "<|content_text|>",
}
EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)
PLAIN_QWEN = {
    **QWEN.template,
    "fields": {name: each for name, each in QWEN.fields.items() if name != "reasoning_content"},
}


def stream_of(family: Family, **kwargs: Any) -> Any:
    settings: dict[str, Any] = {"tools": [WAIT], "response_format": Pair, "max_new_tokens": 300}
    settings |= {"parse_response": family.template, **kwargs}
    return stream_text(family.model, family.tokenizer, family.prompt, **settings)


def says(family: Family, text: str) -> dict[str, Any]:
    """Arguments with which the model would say this, if it could."""
    return {"logits_processor": [Say(*family.tokenizer.encode(text), family.eos)]}


def calls_of(stream: Any) -> list[Any]:
    calls = stream.message.get("tool_calls", [])
    return [each["function"] for each in (calls if isinstance(calls, list) else [calls])]


@EACH_FAMILY
async def test_it_can_be_a_call(name: str) -> None:
    family = FAMILIES[name]
    stream = await finished(stream_of(family, **says(family, family.call)))
    assert calls_of(stream) == [CALLED]
    assert (stream.parsed, stream.finish_reason) == (None, FinishReason.EOS)
    assert "content" not in stream.message


@EACH_FAMILY
async def test_it_can_be_an_answer_of_the_form(name: str) -> None:
    family = FAMILIES[name]
    text = OPENS_ANSWER.get(name, "") + ANSWER
    stream = await finished(stream_of(family, **says(family, text)))
    assert (stream.text, stream.parsed) == (ANSWER, Pair(a=3, b="x"))
    assert calls_of(stream) == []


@EACH_FAMILY
@pytest.mark.parametrize("text", ["hello", '{"a": 3, "b": "z"}', "CALL99", f"{ANSWER} CALL"])
async def test_it_cannot_be_anything_else(name: str, text: str) -> None:
    family = FAMILIES[name]
    text = text.replace("CALL99", family.call.replace("7", "99")).replace("CALL", family.call)
    opened = "" if text.startswith(family.call[:3]) else OPENS_ANSWER.get(name, "")
    with pytest.raises(ValueError, match=r"^response_format: .*left no token"):
        await finished(stream_of(family, **says(family, opened + text)))


async def test_whatever_the_model_says_it_is_one_of_the_two() -> None:
    """On random weights, and in one batch with a call that is required and one that is not."""
    ended = set[bool]()
    for seed in range(6):
        with seeded(seed):
            batch = await finished(
                stream_batch(
                    QWEN.model,
                    QWEN.tokenizer,
                    [QWEN.prompt, f"user:what now?\n{QWEN.anchor}"],
                    tools=[WAIT],
                    parallel_tool_calls=False,
                    response_format=Pair,
                    parse_response=PLAIN_QWEN,
                    do_sample=True,
                    max_new_tokens=120,
                )
            )
        rows = zip(batch.finish_reason, batch.message, batch.parsed, batch.text, strict=True)
        for reason, message, parsed, text in rows:
            if reason is not FinishReason.EOS:
                assert parsed is None
                continue
            ended.add(parsed is None)
            for call in message.get("tool_calls", []):
                jsonschema.validate(call["function"]["arguments"], PARAMETERS)
            assert (parsed is None) is ("tool_calls" in message)
            assert parsed is None or parsed == Pair.model_validate_json(text)
    assert False in ended


async def test_after_a_reasoning() -> None:
    """What looks like a call or an answer in it is neither."""
    thought = f"<think>{QWEN.call} or {ANSWER}?</think>\n\n"
    stream = await finished(stream_of(QWEN, **says(QWEN, thought + ANSWER)))
    assert stream.parsed == Pair(a=3, b="x")
    stream = await finished(stream_of(QWEN, **says(QWEN, thought + QWEN.call)))
    assert (calls_of(stream), stream.parsed) == ([CALLED], None)


async def test_without_parsing_a_call_is_not_taken_for_an_answer() -> None:
    """Llama's call without its special tokens is a JSON object, too."""
    family = FAMILIES["llama"]
    family.tokenizer.response_template = family.template
    try:
        arguments: dict[str, Any] = {"response_format": "json", "parse_response": False}
        stream = await finished(stream_of(family, **arguments, **says(family, family.call)))
        assert json.loads(stream.text)["name"] == "wait"
        assert stream.parsed is None
        stream = await finished(stream_of(family, **arguments, **says(family, ANSWER)))
        assert stream.parsed == {"a": 3, "b": "x"}
    finally:
        family.tokenizer.response_template = None


async def test_where_a_call_is_required_there_is_nothing_to_parse() -> None:
    required = {"tool_choice": "required", "parallel_tool_calls": False}
    stream = await finished(stream_of(QWEN, **required, **says(QWEN, QWEN.call)))
    assert (calls_of(stream), stream.parsed) == ([CALLED], None)
    with pytest.raises(ValueError, match=r"^tool_choice: "):
        await finished(stream_of(QWEN, **required, **says(QWEN, ANSWER)))


async def test_where_no_call_is_possible_it_is_an_answer() -> None:
    stream = await finished(stream_of(QWEN, tool_choice="none", **says(QWEN, ANSWER)))
    assert stream.parsed == Pair(a=3, b="x")


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_engines(batching: Any) -> None:
    """The prompts open a call, the beginning of an answer, and nothing."""
    found: list[Any] = []
    async with open_engine(QWEN.model, QWEN.tokenizer, batching=batching) as engine:

        async def ask(bias: str) -> None:
            (token_id,) = QWEN.tokenizer.encode(bias)
            async with engine.stream_text(
                QWEN.prompt,
                tools=[WAIT],
                response_format=Pair,
                parallel_tool_calls=False,
                parse_response=PLAIN_QWEN,
                logit_bias={token_id: 3.0},
                max_new_tokens=150,
            ) as stream:
                await stream.read()
            found.append((bias, stream))

        async with create_task_group() as tasks:
            for bias in "<{":
                tasks.start_soon(ask, bias)
        assert not engine.statistics().running
    for bias, stream in found:
        assert bool(calls_of(stream)) is (bias == "<")
        if stream.finish_reason is FinishReason.EOS:
            assert isinstance(stream.parsed, Pair) is (bias == "{")
        assert (bias == "{") is stream.text.startswith("{")


async def test_a_form_whose_answers_can_begin_like_a_call_is_refused() -> None:
    """Which of the two it is would not be known. A special token is in no answer."""
    coder = FAMILIES["qwen coder"]
    free = {"response_format": Regex("(?s:.{0,100})")}
    with pytest.raises(ValueError, match=r"response_format: .*'<tool_call>', as a call does"):
        await finished(stream_of(coder, **free))
    llama = FAMILIES["llama"]
    stream = await finished(stream_of(llama, **free, **says(llama, "yes")))
    assert stream.parsed == "yes"


async def test_without_a_response_template_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tools: .*without a response template"):
        await finished(stream_of(QWEN, parse_response=False))
