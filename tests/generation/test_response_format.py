"""`response_format`: the answer keeps to its form, however it is generated, and is parsed."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pydantic
import pytest
import torch
from anyio import create_task_group, fail_after, move_on_after
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from anystreamer import (
    Choice,
    FinishReason,
    Grammar,
    Regex,
    open_engine,
    stream_batch,
    stream_text,
    sync,
)
from anystreamer._text.form_matcher import _Compiler
from anystreamer.testing import ScriptedModel

from ..helpers.batchings import BATCHINGS
from ..helpers.call_templates import FAMILIES
from ..helpers.llama_streams import CHAT, ENDLESS, PROMPT, collect, finished, stream_llama
from ..helpers.scripted import PATIENCE, until
from ..helpers.tiny_models import (
    EOS,
    MARK,
    Say,
    assistant,
    generated,
    llama,
    new_llama,
    seeded,
    steps_of,
    t5,
    tokenizer,
    whisper,
)

pytest.importorskip("llguidance")

pytestmark = pytest.mark.torch

LONG: dict[str, Any] = {"max_new_tokens": 600}
SAMPLED: dict[str, Any] = {"do_sample": True, **LONG}


class Point(pydantic.BaseModel):
    x: int = pydantic.Field(ge=0, le=999)
    label: str = pydantic.Field(max_length=5)


def objects(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SHORT = {"type": "string", "maxLength": 4}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": objects(a={"type": "integer", "minimum": -5, "maximum": 500}, b={"type": "boolean"}),
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    "empty object": objects(),
    "numbers": objects(n={"type": "number", "minimum": 0, "exclusiveMaximum": 1}),
    "enum of 2,000": {"enum": [f"value {n}" for n in range(2000)]},
    "unicode": {"enum": ["é", "🙂", "漢字", "\u2028", '"\\']},
    "recursive": {
        "$defs": {
            "tree": objects(
                leaf={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}, name=SHORT
            )
        },
        "$ref": "#/$defs/tree",
    },
    "pattern": objects(date={"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}),
    "one of": {"anyOf": [objects(kind={"const": "a"}), objects(other=SHORT)]},
    "nested": objects(points={"type": "array", "items": objects(x=SHORT), "maxItems": 2}),
}


def is_of(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_whole_answer_is_of_its_schema(schema: str) -> None:
    """Of a model that says anything."""
    ended = 0
    for seed in range(6):
        with seeded(seed):
            stream = await finished(stream_llama(response_format=SCHEMAS[schema], **SAMPLED))
        if stream.finish_reason is FinishReason.EOS:
            ended += 1
            assert stream.parsed == json.loads(stream.text)
            assert is_of(SCHEMAS[schema], stream.parsed)
        else:
            assert (stream.finish_reason, stream.parsed) == (FinishReason.LENGTH, None)
    assert ended >= 3


@settings(max_examples=20)
@given(st.data())
def test_whatever_the_schema(data: st.DataObject) -> None:
    leaves: st.SearchStrategy[Any] = st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"enum": ["a", 1, None]}, SHORT, {"const": [1]}]
    )
    schemas = st.recursive(
        leaves,
        lambda inner: (
            st.dictionaries(st.text(max_size=3), inner, max_size=3).map(
                lambda each: objects(**each)
            )
            | inner.map(lambda each: {"type": "array", "items": each, "maxItems": 2})
            | st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each})
        ),
        max_leaves=5,
    )
    schema, seed = data.draw(schemas), data.draw(st.integers(0, 2**31))
    with (
        seeded(seed),
        sync.stream_text(llama(), tokenizer(), PROMPT, response_format=schema, **SAMPLED) as stream,
    ):
        text = stream.read()
    if stream.finish_reason is FinishReason.EOS:
        assert is_of(schema, json.loads(text))
    else:
        assert stream.finish_reason is FinishReason.LENGTH


async def test_a_pydantic_class_gives_its_instance() -> None:
    with seeded(1):
        stream = await finished(stream_llama(response_format=Point, **SAMPLED))
    assert isinstance(stream.parsed, Point)
    assert stream.parsed is stream.parsed
    assert json.loads(stream.text) == stream.parsed.model_dump()


async def test_a_pydantic_class_has_no_other_properties() -> None:
    class Pair(pydantic.BaseModel):
        one: Point
        many: list[Point]

    say = Say('{"one": {"x": 1, "label": "a", "')
    with pytest.raises(ValueError, match="left no token"):
        await finished(stream_llama(response_format=Pair, logits_processor=[say], **ENDLESS))


async def test_a_validator_that_the_schema_does_not_show_raises() -> None:
    class Odd(pydantic.BaseModel):
        x: bool

        @pydantic.field_validator("x")
        @classmethod
        def never(cls, value: bool) -> bool:
            raise ValueError("never")

    stream = await finished(stream_llama(response_format=Odd, **LONG))
    assert stream.finish_reason is FinishReason.EOS
    with pytest.raises(pydantic.ValidationError, match="never"):
        _ = stream.parsed


async def test_json_is_any_object() -> None:
    text = '{"a": [1, {"b": null}], "é": "\\n🙂"}'
    context = stream_llama(response_format="json", logits_processor=[Say(text, EOS)], **ENDLESS)
    stream = await finished(context)
    assert stream.text == text
    assert stream.parsed == json.loads(text)


@pytest.mark.parametrize(
    ("form", "is_one"),
    [
        (Regex("[0-9]{2}(x|yz)?"), lambda text: text[:2].isdecimal() and len(text) <= 4),
        (Choice(["yes", "no", "é"]), lambda text: text in ("yes", "no", "é")),
        (Grammar('start: "<" start ">" | "a"'), lambda text: text.strip("<>") == "a"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_texts_of_other_forms(form: Any, is_one: Callable[[str], bool]) -> None:
    for seed in range(5):
        with seeded(seed):
            stream = await finished(stream_llama(response_format=form, **SAMPLED))
        assert stream.finish_reason is FinishReason.EOS
        assert stream.parsed == stream.text
        assert is_one(stream.text)


# -- beside other arguments


@pytest.mark.parametrize("sampled", [False, True])
async def test_each_row_of_a_batch_keeps_to_it(sampled: bool) -> None:
    """Rows end at different steps, and the tokens that pad them are not looked at."""
    form = Regex("(a|b[0-9]{3}|[c-h]{9})!")
    with seeded(0):
        context = stream_batch(
            llama(),
            tokenizer(),
            ["Once", "upon a time", "x"],
            num_return_sequences=3 if sampled else 1,
            do_sample=sampled,
            response_format=form,
            **LONG,
        )
        stream = await finished(context)
    assert stream.parsed == stream.text
    assert all(text.endswith("!") for text in stream.text)
    assert len({*map(len, stream.text)}) > 1 or not sampled
    assert set(stream.finish_reason) == {FinishReason.EOS}


async def test_a_row_that_is_stopped_is_cut_alone() -> None:
    async with stream_batch(
        llama(),
        tokenizer(),
        ["Once", "upon"],
        response_format=Regex("[a-z]{30}"),
        **LONG,
    ) as stream:
        async for _ in stream:
            stream.stop(0)
    assert stream.parsed[0] is None
    assert stream.parsed[1] == stream.text[1]
    assert len(stream.text[1]) == 30


ASSISTED: dict[str, Callable[[], dict[str, Any]]] = {
    "assistant_model": lambda: {"assistant_model": assistant()},
    "prompt_lookup": lambda: {"prompt_lookup_num_tokens": 4},
}


@pytest.mark.parametrize("way", ASSISTED)
@pytest.mark.parametrize(
    "form", [Regex("(one |two |three ){6}x"), SCHEMAS["object"]], ids=["words", "object"]
)
async def test_drafts_change_nothing(way: str, form: Any) -> None:
    prompt = "one two three one two three one"
    plain = await finished(stream_llama(prompt, response_format=form, **LONG))
    drafted = await finished(stream_llama(prompt, response_format=form, **LONG, **ASSISTED[way]()))
    assert drafted.token_ids == plain.token_ids
    assert drafted.parsed == plain.parsed is not None


async def test_the_callers_processors_come_first() -> None:
    class Prefers(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            scores[:, tokenizer().encode("b")[0]] = 50.0
            scores[:, tokenizer().encode("z")[0]] = 100.0
            return scores

    context = stream_llama(response_format=Regex("[abc]{5}"), logits_processor=[Prefers()], **LONG)
    assert (await finished(context)).text == "bbbbb"


async def test_it_changes_no_token_that_was_allowed() -> None:
    class Letters(LogitsProcessor):
        """Random bytes are not always a text."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            letters = tokenizer().encode("abcdefghijklmnopqrstuvwxyz")
            return scores + torch.full_like(scores, -torch.inf).index_fill(
                1, torch.tensor(letters), 0
            )

    kwargs: dict[str, Any] = {"logits_processor": [Letters()], "max_new_tokens": 30}
    expected = generated(llama(), PROMPT, **kwargs)
    stream = await finished(stream_llama(response_format=Regex("(?s:.*)"), **kwargs))
    assert stream.token_ids == expected


async def test_log_probabilities_are_those_of_the_model() -> None:
    _, stream = await collect(stream_llama(response_format=Choice(["qqq"]), logprobs=True, **LONG))
    chunks, _ = await collect(stream_llama(response_format=Choice(["qqq"]), logprobs=True, **LONG))
    first = chunks[0]
    with torch.no_grad():
        ids = torch.tensor([tokenizer().encode(PROMPT)])
        expected = llama()(ids).logits[0, -1].log_softmax(-1)[first.token_ids[0]]
    assert first.logprobs is not None
    assert first.logprobs[0] == pytest.approx(expected.item(), abs=1e-4)
    assert stream.parsed == "qqq"


async def test_a_stop_string_cuts_it() -> None:
    context = stream_llama(response_format=Choice(["abcdef"]), stop="cd", **LONG)
    stream = await finished(context)
    assert (stream.text, stream.finish_reason) == ("ab", FinishReason.STOP_STRING)
    assert stream.parsed is None


async def test_an_encoder_decoder_whose_last_token_is_forced() -> None:
    forced: dict[str, Any] = {"forced_eos_token_id": EOS}
    form = Regex("[a-f]{12}")
    context = stream_text(t5(), tokenizer(), "x", response_format=form, max_new_tokens=20, **forced)
    assert len((await finished(context)).parsed) == 12
    context = stream_text(t5(), tokenizer(), "x", response_format=form, max_new_tokens=8, **forced)
    cut = await finished(context)
    assert cut.parsed is None
    assert len(cut.text) == 7


async def test_a_token_that_is_forced_at_the_beginning_is_no_part_of_it() -> None:
    context = stream_text(
        t5(),
        tokenizer(),
        "x",
        response_format=Regex("[a-f]{4}"),
        forced_bos_token_id=MARK,
        **LONG,
    )
    stream = await finished(context)
    assert stream.token_ids[0] == MARK
    assert stream.parsed == stream.text
    assert len(stream.text) == 4


# -- where the answer is cut


@pytest.mark.parametrize("length", [1, 4, 5, 6])
async def test_an_answer_that_is_cut_by_its_limit_is_not_parsed(length: int) -> None:
    """It is if nothing can follow, though the limit comes before the end-of-sequence token."""
    context = stream_llama(response_format=Choice(["abcde"]), max_new_tokens=length)
    stream = await finished(context)
    assert stream.text == "abcde"[:length]
    assert stream.parsed == ("abcde" if length >= 5 else None)


async def test_a_number_that_could_go_on_is_cut() -> None:
    context = stream_llama(
        response_format={"type": "integer"}, logits_processor=[Say("123")], max_new_tokens=3
    )
    stream = await finished(context)
    assert (stream.text, stream.parsed) == ("123", None)


async def test_it_is_cut_by_leaving_and_by_a_cancelled_scope() -> None:
    form = Regex("[a-z]{800}")
    async with stream_llama(response_format=form, **ENDLESS) as stream:
        await stream.receive()
        assert stream.parsed is None
    assert stream.parsed is None
    with move_on_after(0.05):
        async with stream_llama(response_format=form, **ENDLESS) as stream:
            await stream.read()
    assert stream.parsed is None
    assert (await finished(stream_llama(response_format=Choice(["ab"]), **LONG))).parsed == "ab"


# -- after reasoning

TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "a:",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "content": {"close_pattern": r"<eos>", "content": "text"},
    },
}


@pytest.fixture
def reasoning() -> dict[str, Any]:
    if not hasattr(tokenizer(), "get_response_parser"):
        pytest.skip("this release of transformers has no response parser")
    return {"parse_response": TEMPLATE, **LONG}


async def test_the_form_begins_after_the_reasoning(reasoning: dict[str, Any]) -> None:
    say = Say('<think>Is {} it?</think>\n{"a": 7, "b": true}', EOS)
    stream = await finished(
        stream_llama(CHAT, response_format=SCHEMAS["object"], logits_processor=[say], **reasoning)
    )
    assert stream.parsed == {"a": 7, "b": True}
    assert stream.message["reasoning_content"] == "Is {} it?"


async def test_an_answer_can_have_no_reasoning(reasoning: dict[str, Any]) -> None:
    for seed in range(3):
        with seeded(seed):
            stream = await finished(
                stream_llama(
                    CHAT, response_format=Choice(["yes", "no"]), do_sample=True, **reasoning
                )
            )
        assert stream.finish_reason is FinishReason.LENGTH or stream.parsed in ("yes", "no")


async def test_reasoning_that_the_prompt_opened(reasoning: dict[str, Any]) -> None:
    """The form is not kept to before the reasoning has ended."""
    say = Say("well, no</think>yes", EOS)
    prompt = "u:Hi\na:<think>"
    stream = await finished(
        stream_llama(
            prompt, response_format=Choice(["yes", "no"]), logits_processor=[say], **reasoning
        )
    )
    assert stream.parsed == "yes"
    assert stream.message["reasoning_content"] == "well, no"


async def test_markers_of_several_special_tokens() -> None:
    """Harmony's: reasoning and content are messages of their own."""
    if not hasattr(tokenizer(), "get_response_parser"):
        pytest.skip("this release of transformers has no response parser")
    harmony = FAMILIES["harmony"]
    thought = "<|channel|>analysis<|message|>Is it?<|end|>"
    for between in ("", "<|start|>assistant"):
        text = f"{thought}{between}<|channel|>final<|message|>yes"
        context = stream_text(
            harmony.model,
            harmony.tokenizer,
            harmony.prompt,
            response_format=Choice(["yes", "no"]),
            parse_response=harmony.template,
            logits_processor=[Say(*harmony.tokenizer.encode(text), harmony.eos)],
            **LONG,
        )
        stream = await finished(context)
        assert stream.parsed == "yes"
        assert stream.message["thinking"] == "Is it?"


# -- engines and streams without a loop


async def test_with_an_engine() -> None:
    async with open_engine(llama(), tokenizer()) as engine:
        stream = await finished(engine.stream_text(PROMPT, response_format=Point, **LONG))
        assert isinstance(stream.parsed, Point) or stream.parsed is None
        stream = await finished(engine.stream_text(PROMPT, response_format=Choice(["a"]), **LONG))
        assert stream.parsed == "a"


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_no_other_request_waits_for_a_form_that_takes_long(
    batching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, goes_on = threading.Event(), threading.Event()
    compile_form = _Compiler._compile

    def slow(self: _Compiler, *args: Any) -> Any:
        has_begun.set()
        goes_on.wait()
        return compile_form(self, *args)

    monkeypatch.setattr(_Compiler, "_compile", slow)
    async with open_engine(llama(), tokenizer(), batching=batching) as engine:
        form = Choice([f"not compiled {secrets.token_hex(8)}"])
        await finished(
            engine.stream_text(PROMPT, max_new_tokens=1)
        )  # a manager takes long to begin

        async def ask() -> None:
            stream = await finished(engine.stream_text(PROMPT, response_format=form, **LONG))
            assert stream.parsed == form.options[0]

        async with create_task_group() as tasks:
            try:
                tasks.start_soon(ask)
                await until(has_begun.is_set)
                with fail_after(PATIENCE):
                    await finished(engine.stream_text(PROMPT, max_new_tokens=3))
            finally:
                goes_on.set()


def test_without_a_loop() -> None:
    form = Choice(["yes"])
    with sync.stream_text(llama(), tokenizer(), PROMPT, response_format=form, **LONG) as stream:
        assert stream.read() == "yes"
    assert stream.parsed == "yes"
    with sync.stream_batch(llama(), tokenizer(), ["a", "b"], response_format=form, **LONG) as batch:
        batch.read()
    assert batch.parsed == ["yes", "yes"]


# -- what is refused


@pytest.mark.parametrize("form", [{"type": "foo"}, Regex("("), Grammar("start: other")], ids=str)
async def test_a_form_that_is_not_valid_costs_no_step(form: Any) -> None:
    with steps_of(llama()) as steps:
        with pytest.raises(ValueError, match="response_format is not valid"):
            async with stream_llama(response_format=form, **LONG):
                pytest.fail("entered")
    assert steps.count == 0


async def test_settings_that_leave_no_token_are_an_error() -> None:
    context = stream_llama(
        response_format=Choice(["abc"]), logits_processor=[Say("abx")], **ENDLESS
    )
    with pytest.raises(ValueError, match="left no token that the format allows"):
        async with context as stream:
            await stream.read()
    assert (stream.text, stream.parsed) == ("ab", None)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"min_new_tokens": 5}, "min_new_tokens=5"),
        ({"min_length": 5}, "min_length=5"),
        ({"assistant_tokenizer": 1, "assistant_model": 1}, "assistant_tokenizer"),
    ],
    ids=str,
)
def test_settings_that_work_against_it_are_refused(kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        stream_llama(response_format="json", **kwargs)


async def test_an_answer_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="eos_token_id="):
        async with stream_llama(response_format="json", eos_token_id=None, **LONG):
            pass


def test_models_that_it_cannot_hold_for_are_refused() -> None:
    scripted = ScriptedModel(["a"])
    with pytest.raises(ValueError, match="needs a model of transformers"):
        stream_text(scripted, scripted.tokenizer, "x", response_format="json")
    with pytest.raises(ValueError, match="Whisper"):
        stream_text(whisper(), tokenizer(), {"input_features": 1}, response_format="json")


async def test_a_tokenizer_without_a_vocabulary_to_read_is_refused() -> None:
    class Slow:
        eos_token_id = EOS

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer()(*args, **kwargs)

        def decode(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer().decode(*args, **kwargs)

    with pytest.raises(ValueError, match="Slow is not a tokenizer of the tokenizers library"):
        async with stream_text(llama(), Slow(), PROMPT, response_format="json", **LONG):
            pass


async def test_several_ends_are_all_ends() -> None:
    model = new_llama(never=(EOS,))
    context = stream_text(
        model, tokenizer(), PROMPT, response_format=Choice(["ab"]), eos_token_id=[MARK, EOS], **LONG
    )
    stream = await finished(context)
    assert stream.parsed == "ab"
    assert stream.token_ids[-1] in (MARK, EOS)
