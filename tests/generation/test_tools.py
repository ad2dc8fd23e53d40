"""`tools` and `tool_choice`: calls keep to their schemas, whatever the model says."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from transformers import PreTrainedTokenizerFast

from anystreamer import FinishReason, stream_text

from ..helpers.call_templates import FAMILIES, QWEN, Family, Wish, tool
from ..helpers.llama_streams import finished
from ..helpers.tiny_models import Say, seeded

pytest.importorskip("llguidance")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not hasattr(PreTrainedTokenizerFast, "get_response_parser"),
        reason="this release of transformers has no response parser",
    ),
]

LONG: dict[str, Any] = {"max_new_tokens": 300}
SAMPLED: dict[str, Any] = {"do_sample": True, **LONG}
SHORT = {"type": "string", "maxLength": 5}
WAIT = tool(
    "wait",
    {"seconds": {"type": "integer", "minimum": 0, "maximum": 60}, "why": SHORT},
    required=["seconds"],
)
GO = tool("go_to", {"place": {"enum": ["here", "there"]}}, required=["place"])
TOOLS = [WAIT, GO]
STRICT = [{**each, "function": {**each["function"], "strict": True}} for each in TOOLS]
PARAMETERS = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def stream_of(family: Family, **kwargs: Any) -> Any:
    """Of a model that says anything."""
    settings = {"tools": TOOLS, "parse_response": family.template, **LONG, **kwargs}
    return stream_text(family.model, family.tokenizer, family.prompt, **settings)


def says(family: Family, text: str, *, ends: bool = True) -> dict[str, Any]:
    """Arguments with which the model would say this, if it could."""
    ids = family.tokenizer.encode(text)
    return {"logits_processor": [Say(*ids, *[family.eos] * ends)]}


def calls_of(message: Any) -> list[dict[str, Any]]:
    """The calls of a message. A template that does not repeat them has one, or one list."""
    calls = message.get("tool_calls", [])
    return [each["function"] for each in (calls if isinstance(calls, list) else [calls])]


def is_sound(call: dict[str, Any], parameters: Any = PARAMETERS) -> bool:
    validator = jsonschema.Draft202012Validator(parameters[call["name"]])
    return bool(validator.is_valid(call["arguments"]))


# -- "required"


@EACH_FAMILY
@pytest.mark.parametrize("parallel", [True, False])
async def test_a_required_call_is_made_and_is_sound(family: Family, parallel: bool) -> None:
    ended = 0
    for seed in range(4):
        with seeded(seed):
            stream = await finished(
                stream_of(
                    family,
                    tool_choice="required",
                    parallel_tool_calls=parallel,
                    logits_processor=family.no_reasoning(),
                    **SAMPLED,
                )
            )
        calls = calls_of(stream.message)
        assert all(map(is_sound, calls)), calls
        if stream.finish_reason is FinishReason.EOS:
            ended += 1
            assert len(calls) == 1 if not parallel else calls
            assert not stream.message.get("content")
        assert calls or stream.finish_reason is FinishReason.LENGTH
    assert ended or parallel  # with random weights one call follows the other


@EACH_FAMILY
async def test_a_named_function_is_called_once(family: Family) -> None:
    for name in ("wait", "go_to"):
        choice = {"type": "function", "function": {"name": name}}
        with seeded(1):
            stream = await finished(
                stream_of(
                    family,
                    tool_choice=choice,
                    logits_processor=family.no_reasoning(),
                    **SAMPLED,
                )
            )
        assert stream.finish_reason is FinishReason.EOS
        (call,) = calls_of(stream.message)
        assert call["name"] == name
        assert is_sound(call)


CALLED = {"name": "wait", "arguments": {"seconds": 7}}


@EACH_FAMILY
@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_the_families_own_calls_are_allowed(family: Family, choice: str) -> None:
    """The grammar has what these models write."""
    stream = await finished(
        stream_of(family, tools=STRICT, tool_choice=choice, **says(family, family.call))
    )
    assert calls_of(stream.message) == [CALLED]
    assert stream.finish_reason is FinishReason.EOS


@EACH_FAMILY
@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_arguments_that_are_not_of_the_schema_cannot_be_said(
    family: Family, choice: str
) -> None:
    for wrong in (family.call.replace("7", "99"), family.call.replace("seconds", "hours")):
        context = stream_of(family, tools=STRICT, tool_choice=choice, **says(family, wrong))
        with pytest.raises(ValueError, match="left no token that the form allows"):
            await finished(context)


# -- "auto"


@EACH_FAMILY
async def test_text_is_free_until_a_call_begins(family: Family) -> None:
    with seeded(0):
        kwargs = {**SAMPLED, "max_new_tokens": 60}
        stream = await finished(stream_of(family, tools=STRICT, **kwargs))
    assert stream.token_ids
    assert all(map(is_sound, calls_of(stream.message)))
    text = "No: {7} <tool é 🙂\n"
    stream = await finished(stream_of(family, tools=STRICT, **says(family, text)))
    assert stream.token_ids == [*family.tokenizer.encode(text), family.eos]
    stream = await finished(stream_of(family, tools=STRICT, **says(family, text + family.call)))
    assert calls_of(stream.message) == [CALLED]


async def test_tools_that_are_not_strict_can_be_called_with_anything() -> None:
    both = [STRICT[0], GO]
    said = QWEN.call.replace('"wait"', '"go_to"').replace("seconds", "who knows")
    stream = await finished(stream_of(QWEN, tools=both, **says(QWEN, f"{said}\n{QWEN.call}!")))
    assert calls_of(stream.message) == [{"name": "go_to", "arguments": {"who knows": 7}}, CALLED]
    assert stream.message["content"] == "!"
    other = said.replace("go_to", "other")
    with pytest.raises(ValueError, match="left no token"):
        await finished(stream_of(QWEN, tools=both, **says(QWEN, other)))
    # Where none is strict, nothing is enforced.
    stream = await finished(stream_of(QWEN, **says(QWEN, other)))
    assert calls_of(stream.message)[0]["name"] == "other"


@EACH_FAMILY
@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_after_one_call_only_the_end(family: Family, choice: str) -> None:
    single: dict[str, Any] = {"tool_choice": choice, "parallel_tool_calls": False}
    stream = await finished(stream_of(family, **single, **says(family, family.call)))
    assert calls_of(stream.message) == [CALLED]
    for more in (family.call, "and text"):
        with seeded(0):
            stream = await said_if_allowed(family, family.call + more, **single)
        assert calls_of(stream.message) == [CALLED]
        assert family.tokenizer.decode(stream.token_ids).count(family.opens_call) == 1
        assert "and text" not in family.tokenizer.decode(stream.token_ids)
        assert stream.finish_reason is FinishReason.EOS


# -- "none"


async def said_if_allowed(family: Family, text: str, **kwargs: Any) -> Any:
    """A stream of a model that wants to say this, and goes on otherwise where it cannot."""
    wish = Wish(family.tokenizer.encode(text))
    settings = {**SAMPLED, "max_new_tokens": len(wish.ids) + 5, **kwargs}
    return await finished(stream_of(family, logits_processor=[wish], **settings))


@EACH_FAMILY
async def test_no_call_can_begin(family: Family) -> None:
    for said in (family.call, f"Well, {family.call}"):
        with seeded(0):
            free = await said_if_allowed(family, said)
            stream = await said_if_allowed(family, said, tool_choice="none")
        assert family.opens_call in family.tokenizer.decode(free.token_ids)
        assert family.opens_call not in family.tokenizer.decode(stream.token_ids)
        assert "tool_calls" not in stream.message


@EACH_FAMILY
async def test_text_is_free_where_no_call_can_begin(family: Family) -> None:
    text = "No: {7} <tool é 🙂\n"
    stream = await finished(stream_of(family, tool_choice="none", **says(family, text)))
    assert stream.token_ids == [*family.tokenizer.encode(text), family.eos]


async def test_the_tools_stay_in_the_prompt() -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompts = []
    for choice in ("none", "auto", "required", None):
        async with stream_text(
            QWEN.model,
            QWEN.tokenizer,
            messages,
            tools=STRICT,
            tool_choice=choice,  # type: ignore[arg-type]
            parse_response=QWEN.template,
            max_new_tokens=1,
        ) as stream:
            prompts.append(QWEN.tokenizer.decode(stream.prompt_token_ids))
    tools = "".join(f"tool:{json.dumps(each)}\n" for each in TOOLS)
    assert prompts == [f"{tools}user:hi\n{QWEN.anchor}"] * 4
