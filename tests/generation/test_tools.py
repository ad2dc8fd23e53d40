"""`tools` and `tool_choice`: calls keep to their schemas, whatever the model says."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from anyio import CancelScope, create_task_group, move_on_after
from hypothesis import given, settings
from hypothesis import strategies as st

from anystreamer import FinishReason, open_engine, stream_batch, stream_text, sync
from anystreamer.testing import ScriptedModel

from ..helpers.batchings import BATCHINGS
from ..helpers.call_templates import FAMILIES, NEEDS_RESPONSE_PARSER, QWEN, Family, Wish, tool
from ..helpers.llama_streams import finished
from ..helpers.tiny_models import Say, seeded, steps_of, whisper

pytest.importorskip("llguidance")

pytestmark = [pytest.mark.torch, NEEDS_RESPONSE_PARSER]

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


# Qwen's template without reasoning, which random weights would not end.
PLAIN_QWEN = {
    **QWEN.template,
    "fields": {name: each for name, each in QWEN.fields.items() if name != "reasoning_content"},
}
PLAIN = {"parse_response": PLAIN_QWEN}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


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


@pytest.mark.slow
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
        with seeded(1):
            stream = await finished(
                stream_of(
                    family,
                    tool_choice=named(name),
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
        with pytest.raises(ValueError, match="left no token that the format allows"):
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


@pytest.mark.slow
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
            tool_choice=choice,
            parse_response=QWEN.template,
            max_new_tokens=1,
        ) as stream:
            prompts.append(QWEN.tokenizer.decode(stream.prompt_token_ids))
    tools = "".join(f"tool:{json.dumps(each)}\n" for each in TOOLS)
    assert prompts == [f"{tools}user:hi\n{QWEN.anchor}"] * 4


# -- reasoning


async def test_the_reasoning_comes_first() -> None:
    """What looks like a call in it is none."""
    thought = f"<think>Shall I? {QWEN.call.replace('7', '99')}</think>\n"
    for choice in ("required", "auto"):
        text = thought + QWEN.call
        stream = await finished(
            stream_of(QWEN, tools=STRICT, tool_choice=choice, **says(QWEN, text))
        )
        assert calls_of(stream.message) == [CALLED]
        assert "Shall I?" in stream.message["reasoning_content"]
    stream = await finished(
        stream_of(QWEN, tool_choice="none", **says(QWEN, f"<think>{QWEN.call}</think>No."))
    )
    assert (stream.message["content"], stream.text) == ("No.", "No.")


async def test_a_reasoning_that_the_prompt_opened() -> None:
    for choice in ("required", "auto"):
        context = stream_text(
            QWEN.model,
            QWEN.tokenizer,
            f"{QWEN.prompt}<think>",
            tools=STRICT,
            tool_choice=choice,
            parse_response=QWEN.template,
            **LONG,
            **says(QWEN, f"So {QWEN.call.replace('7', '99')}</think>{QWEN.call}"),
        )
        assert calls_of((await finished(context)).message) == [CALLED]


async def test_harmonys_messages_follow_one_another() -> None:
    harmony = FAMILIES["harmony"]
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    said = "<|channel|>final<|message|>Wait.<|end|><|start|>assistant"
    for choice, text in (("required", thought), ("auto", thought + said)):
        stream = await finished(
            stream_of(
                harmony, tools=STRICT, tool_choice=choice, **says(harmony, text + harmony.call)
            )
        )
        assert calls_of(stream.message) == [CALLED]
        assert stream.message["thinking"] == "Hm."
    assert stream.message["content"] == "Wait."


# -- other ways to stream


@pytest.mark.parametrize("name", ["qwen", "qwen coder", "cohere"])
async def test_each_row_of_a_batch_makes_its_call(name: str) -> None:
    family = FAMILIES[name]
    with seeded(0):
        context = stream_batch(
            family.model,
            family.tokenizer,
            [family.prompt, f"user:what now?\n{family.anchor}"],
            num_return_sequences=2,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            parse_response=family.template,
            logits_processor=family.no_reasoning(),
            **SAMPLED,
        )
        stream = await finished(context)
    assert stream.parsed == [None] * 4
    for reason, message in zip(stream.finish_reason, stream.message, strict=True):
        assert reason is FinishReason.EOS
        (call,) = calls_of(message)
        assert is_sound(call)


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_engines_make_calls(batching: Any) -> None:
    async with open_engine(QWEN.model, QWEN.tokenizer, batching=batching) as engine:
        found: list[Any] = []

        async def ask(choice: Any, seed: int) -> None:
            async with engine.stream_text(
                QWEN.prompt,
                tools=TOOLS,
                tool_choice=choice,
                parallel_tool_calls=False,
                parse_response=PLAIN_QWEN,
                do_sample=True,
                temperature=1.0 + seed,
                max_new_tokens=150,
            ) as stream:
                await stream.read()
            found.append((choice, stream))

        async with create_task_group() as tasks:
            for number in range(6):
                for choice in ("required", "none", named("go_to")):
                    tasks.start_soon(ask, choice, number % 2)
    for choice, stream in found:
        calls = calls_of(stream.message)
        assert all(map(is_sound, calls))
        if choice == "none":
            assert not calls
            assert "<tool_call>" not in stream.text
        elif stream.finish_reason is FinishReason.EOS:
            assert len(calls) == 1
            assert choice == "required" or calls[0]["name"] == "go_to"
        else:
            assert stream.finish_reason is FinishReason.LENGTH
    assert sum(bool(stream.message.get("tool_calls")) for _, stream in found) >= 6


def test_without_a_loop() -> None:
    with (
        seeded(0),
        sync.stream_text(
            QWEN.model,
            QWEN.tokenizer,
            QWEN.prompt,
            tools=TOOLS,
            tool_choice=named("go_to"),
            parse_response=PLAIN_QWEN,
            **SAMPLED,
        ) as stream,
    ):
        stream.read()
    assert [call["name"] for call in calls_of(stream.message)] == ["go_to"]


async def test_a_call_that_is_cut_is_none() -> None:
    for length in (5, 30, 50):
        stream = await finished(stream_of(QWEN, tool_choice="required", max_new_tokens=length))
        assert stream.finish_reason is FinishReason.LENGTH
        assert "tool_calls" not in stream.message
    async with stream_of(QWEN, tool_choice="required") as stream:
        async for _ in stream:
            break
    assert stream.message.get("tool_calls") in (None, [])
    with move_on_after(0.05):
        async with stream_of(QWEN, tool_choice="required") as stream:
            await stream.read()
    with CancelScope() as scope:
        async with stream_of(QWEN, tool_choice="required") as stream:
            scope.cancel()
            await stream.read()
    with steps_of(QWEN.model) as steps:
        with CancelScope() as scope:
            scope.cancel()
            async with stream_of(QWEN, tool_choice="required"):
                pytest.fail("entered")
    assert steps.count == 0
    stream = await finished(stream_of(QWEN, tool_choice=named("go_to"), **PLAIN))
    assert [call["name"] for call in calls_of(stream.message)] == ["go_to"]


async def test_python_functions_are_tools() -> None:
    def go_to(place: str, fast: bool = False) -> str:
        """
        Goes somewhere.

        Args:
            place: where to
            fast: whether to run
        """
        return place + str(fast)

    context = stream_of(
        QWEN,
        tools=[go_to],
        tool_choice="required",
        **says(QWEN, '<tool_call>{"name": "go_to", "arguments": {"place": "é"}}</tool_call>'),
    )
    (call,) = calls_of((await finished(context)).message)
    assert go_to(**call["arguments"]) == "éFalse"
    with pytest.raises(ValueError, match="'len' cannot be described"):
        stream_of(QWEN, tools=[len])


async def test_without_parsing_the_text_has_the_call() -> None:
    own = FAMILIES["qwen coder"]
    own.tokenizer.response_template = own.template
    try:
        context = stream_of(
            own, tool_choice="required", parse_response=False, **says(own, own.call)
        )
        assert (await finished(context)).text == own.call
    finally:
        own.tokenizer.response_template = None


# -- any schema

LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [
        *({"type": "boolean"}, {"type": "null"}, SHORT, {"type": "integer", "minimum": 0}),
        *({"enum": ["a", "é 🙂", "7", "null"]}, {"enum": [1, None, "b"]}, {"const": "</p"}),
        *({"type": "string", "pattern": "^[a-c]{2}$"}, {"type": ["integer", "null"]}),
        *({"type": "string", "minLength": 2, "maxLength": 3}, {"$ref": "#/$defs/word"}),
        {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 1}, SHORT]},
    ]
)


def with_inner(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return inner.map(lambda each: {"type": "array", "items": each, "maxItems": 2}) | st.lists(
        inner, max_size=2
    ).map(
        lambda each: {
            "type": "object",
            "properties": {f"k{n}": value for n, value in enumerate(each)},
            "required": [f"k{n}" for n in range(len(each))],
            "additionalProperties": False,
        }
    )


SCHEMAS = st.recursive(LEAVES, with_inner, max_leaves=4)
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)


@st.composite
def tool_sets(draw: st.DrawFn) -> list[Any]:
    tools = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        properties = draw(st.dictionaries(NAMES, SCHEMAS, max_size=3))
        required = [key for key in properties if draw(st.booleans())]
        made = tool(name, properties, required)
        made["function"]["parameters"]["$defs"] = {"word": {"enum": ["x", "y z"]}}
        tools.append(made)
    return tools


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(tools=tool_sets(), seed=st.integers(0, 2**31))
def test_whatever_the_tools(name: str, tools: list[Any], seed: int) -> None:
    family = FAMILIES[name]
    parameters = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
    with (
        seeded(seed),
        sync.stream_text(
            family.model,
            family.tokenizer,
            family.prompt,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            parse_response=family.template,
            logits_processor=family.no_reasoning(),
            **SAMPLED,
        ) as stream,
    ):
        stream.read()
    if stream.finish_reason is FinishReason.EOS:
        (call,) = calls_of(stream.message)
        assert is_sound(call, parameters), (call, stream.token_ids)
    else:
        assert stream.finish_reason is FinishReason.LENGTH


# -- what is refused

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tools": {"name": "wait"}}, TypeError, "tools must be a list"),
    ({"tools": "wait"}, TypeError, "tools must be a list"),
    ({"tools": [7]}, ValueError, r"tools\[0\] must be"),
    ({"tools": [{"type": "function", "function": {}}]}, ValueError, r"tools\[0\] must be"),
    ({"tools": [{"name": ""}]}, ValueError, r"tools\[0\] must be"),
    ({"tools": [WAIT, WAIT]}, ValueError, r"tools\[1\]: there is another tool .* 'wait'"),
    ({"tools": [{"name": "a", "parameters": [1]}]}, ValueError, "must be a JSON schema"),
    ({"tools": [{"name": "a", "strict": 1}]}, ValueError, "strict must be a bool"),
    ({"tools": [{"name": "a", "type": "custom"}]}, ValueError, "its type must be 'function'"),
    ({"tools": [{"name": "a", "description": b"b"}]}, ValueError, "cannot be written as JSON"),
    ({"tool_choice": "any"}, ValueError, "tool_choice must be 'auto'"),
    ({"tool_choice": 7}, ValueError, "tool_choice must be 'auto'"),
    ({"tool_choice": {"type": "function"}}, ValueError, "tool_choice must be 'auto'"),
    ({"tool_choice": {"type": "function", "name": "x"}}, ValueError, "no tool of the name 'x'"),
    ({"tool_choice": "required", "tools": []}, ValueError, "tool_choice='required' needs tools"),
    ({"parallel_tool_calls": None}, TypeError, "parallel_tool_calls must be a bool"),
    ({"chat_template_kwargs": {"tools": [WAIT]}}, TypeError, "pass them as tools="),
    ({"tool_choice": "required", "min_new_tokens": 3}, ValueError, "min_new_tokens=3: .*tool_cho"),
    ({"tool_choice": "none", "parse_response": False}, ValueError, "without a response template"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED, ids=str)
def test_what_cannot_be_kept_to_is_refused_at_once(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        stream_of(QWEN, **arguments)


def with_field(**field: Any) -> dict[str, Any]:
    fields = {**QWEN.fields, "tool_calls": {**QWEN.fields["tool_calls"], **field}}
    return {**QWEN.template, "fields": fields}


NOT_KEPT: list[tuple[dict[str, Any], str]] = [
    ({"tools": [tool("a", {"b": {"not": {}}})]}, " is not valid"),
    ({"tools": [tool("a", {"b": {"$ref": "#/nowhere"}})]}, " is not valid"),
    ({"tools": [{"name": "a", "parameters": {"type": "string"}}]}, "must be of the type object"),
    ({"parse_response": with_field(content="kv-lines")}, "its content is 'kv-lines'"),
    (
        {"parse_response": with_field(content_args={"unquoted_keys": True})},
        "a JSON of its own kind",
    ),
    (
        {"parse_response": {**QWEN.template, "fields": {"content": QWEN.fields["content"]}}},
        "has no field 'tool_calls'",
    ),
    ({"parse_response": with_field(open_pattern=r"\s*(?=\{)")}, "no text opens it"),
    ({"parse_response": with_field(open_pattern=r"<tool\b")}, "not known here"),
    (
        {"parse_response": with_field(transform={"function": {"name": "{content.name}"}})},
        "no name and arguments",
    ),
]


@pytest.mark.parametrize(("arguments", "words"), NOT_KEPT, ids=str)
async def test_what_no_grammar_can_be_made_of_costs_no_step(
    arguments: dict[str, Any], words: str
) -> None:
    with steps_of(QWEN.model) as steps:
        with pytest.raises(ValueError, match=f"^tool_choice.*{words}"):
            async with stream_of(QWEN, tool_choice="required", **arguments):
                pytest.fail("entered")
    assert steps.count == 0


ALTERNATIVES: list[dict[str, Any]] = [
    {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]}},
    {
        "d9": {"type": "integer"},
        **{
            name: {"anyOf": [{"$ref": f"#/$defs/{to}"}] * 4}
            for name, to in pairwise(["a", *(f"d{n}" for n in range(10))])
        },
    },
]


@pytest.mark.parametrize("definitions", ALTERNATIVES, ids=["itself", "a million"])
async def test_alternatives_in_tags_have_a_limit(definitions: dict[str, Any]) -> None:
    """Each is written out where arguments have tags, also those that references lead to."""
    described = tool("a", {"b": {"$ref": "#/$defs/a"}})
    described["function"]["parameters"]["$defs"] = definitions
    coder = FAMILIES["qwen coder"]
    with pytest.raises(ValueError, match=r"^tool_choice: the parameter 'b' .* too many alternat"):
        async with stream_of(coder, tools=[described], tool_choice="required"):
            pytest.fail("entered")


def test_models_that_it_cannot_hold_for_are_refused() -> None:
    scripted = ScriptedModel(["a"])
    arguments: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"}
    tokenizer: Any = QWEN.tokenizer
    with pytest.raises(ValueError, match="tool_choice needs a model of transformers"):
        stream_text(scripted, tokenizer, "x", parse_response=QWEN.template, **arguments)
    with pytest.raises(ValueError, match="tool_choice: Whisper"):
        inputs = {"input_features": 1}
        stream_text(whisper(), tokenizer, inputs, parse_response=QWEN.template, **arguments)
