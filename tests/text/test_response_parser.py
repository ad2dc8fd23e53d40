"""`parse_response`: reasoning, content and tool calls told apart, by templates of transformers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast, StoppingCriteria

from anystreamer import FinishReason, TextChunk, stream_batch, stream_text
from anystreamer._text.response_parser import STREAMED, ResponseParser, validate_template

from ..helpers.call_templates import FAMILIES, NEEDS_RESPONSE_PARSER
from ..helpers.inside import worker_left
from ..helpers.tiny_models import CHAT_TEMPLATE, EOS, MARK, Say, TinyProcessor, llama, tokenizer

pytestmark = [pytest.mark.torch, NEEDS_RESPONSE_PARSER]

QWEN: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}
XML: dict[str, Any] = {
    **QWEN,
    "fields": {
        **QWEN["fields"],
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"
            },
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
    },
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "wait",
            "description": "Wait.",
            "parameters": {
                "type": "object",
                "properties": {"seconds": {"type": "integer"}, "why": {"type": "string"}},
            },
        },
    }
]
ANCHOR = "<|im_start|>assistant\n"
PROMPT = f"<|im_start|>user\nhi<|im_end|>\n{ANCHOR}"
THOUGHT = "<think>\nWell é 🙂.\n</think>\n\n"
JSON_CALL = '<tool_call>\n{"name": "wait", "arguments": {"seconds": "7", "why": "7"}}\n</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=wait>\n<parameter=seconds>\n7\n</parameter>\n"
    "<parameter=why>\n7\n</parameter>\n</function>\n</tool_call>"
)
CALLED: dict[str, Any] = {
    "type": "function",
    "function": {"name": "wait", "arguments": {"seconds": 7, "why": "7"}},
}


def new_tokenizer() -> Any:
    """As the other tests', with the special tokens of Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate(alphabet)}
    vocabulary |= {"<|im_end|>": EOS, "<|im_start|>": MARK}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )


TOKENIZER = new_tokenizer()


def stream_of(text: str, *, prompt: str = PROMPT, ends: bool = True, **kwargs: Any) -> Any:
    ids = TOKENIZER.encode(text)
    settings: dict[str, Any] = {"parse_response": QWEN, "max_new_tokens": len(ids) + ends}
    return stream_text(
        llama(),
        TOKENIZER,
        prompt,
        logits_processor=[Say(*ids, *[EOS] * ends)],
        **{**settings, **kwargs},
    )


def parsed(text: str, template: dict[str, Any] = QWEN, **kwargs: Any) -> Any:
    return TOKENIZER.parse_response(text, template, **{"prefix": PROMPT, **kwargs})


def told(pieces: Iterable[TextChunk]) -> list[tuple[str | None, Any]]:
    """Field and value of each piece, text of the same field joined."""
    all_told: list[tuple[str | None, Any]] = []
    for piece in pieces:
        if piece.field == "content" and not piece.is_complete_value:
            assert piece == piece.value
        else:
            assert piece == ""
        if all_told and all_told[-1][0] == piece.field and not piece.is_complete_value:
            all_told[-1] = (piece.field, all_told[-1][1] + piece.value)
        else:
            all_told.append((piece.field, piece.value))
    return all_told


async def test_reasoning_then_content() -> None:
    text = THOUGHT + "The answer.\n\nIs it?"
    async with stream_of(text, parse_response=QWEN) as stream:
        pieces = []
        async for piece in stream:
            pieces.append(piece)
            assert stream.message is None
    assert told(pieces) == [
        ("reasoning_content", "Well é 🙂."),
        ("content", "The answer.\n\nIs it?"),
    ]
    assert "".join(pieces) == stream.text == "The answer.\n\nIs it?"
    assert stream.message == parsed(text + "<|im_end|>")
    assert stream.message == {
        "role": "assistant",
        "reasoning_content": "Well é 🙂.",
        "content": "The answer.\n\nIs it?",
    }
    assert stream.message is stream.message
    assert stream.finish_reason is FinishReason.EOS
    assert stream.token_ids == [*TOKENIZER.encode(text), EOS]
    assert stream.usage is not None
    assert stream.usage.completion_tokens == len(stream.token_ids)


async def test_content_only() -> None:
    async with stream_of("Hello you") as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [("content", "Hello you")]
    assert stream.message == {"role": "assistant", "content": "Hello you"}


async def test_read_gives_the_answer_only() -> None:
    async with stream_of(THOUGHT + "Yes." + JSON_CALL) as stream:
        assert await stream.read() == "Yes."


@pytest.mark.parametrize(("template", "call"), [(QWEN, JSON_CALL), (XML, XML_CALL)], ids="jx")
async def test_tool_calls_have_typed_arguments(template: dict[str, Any], call: str) -> None:
    text = f"{THOUGHT}Wait.\n{call}\n{call}"
    async with stream_of(text, parse_response=template, tools=TOOLS) as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [
        ("reasoning_content", "Well é 🙂."),
        ("content", "Wait."),
        ("tool_calls", CALLED),
        ("tool_calls", CALLED),
    ]
    assert stream.message == parsed(text, template, tools=TOOLS)
    assert stream.message["tool_calls"] == [CALLED, CALLED]
    assert stream.text == "Wait."


async def test_without_tools_arguments_stay_as_they_were_said() -> None:
    async with stream_of(JSON_CALL) as stream:
        await stream.read()
    (call,) = stream.message["tool_calls"]
    assert call["function"]["arguments"] == {"seconds": "7", "why": "7"}


@pytest.mark.parametrize(("template", "call"), [(QWEN, JSON_CALL), (XML, XML_CALL)], ids="jx")
@pytest.mark.parametrize("last", ["Well", "Wai", "wait"])
async def test_an_answer_that_was_cut_has_a_message(
    last: str, template: dict[str, Any], call: str
) -> None:
    """In the reasoning, in the content, and in a tool call, of which there is nothing then."""
    text = f"{THOUGHT}Wait.\n{call}"
    cut = text[: text.index(last) + len(last)]
    async with stream_of(cut, ends=False, parse_response=template) as stream:
        fields = dict(told([piece async for piece in stream]))
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.token_ids == TOKENIZER.encode(cut)
    expected = {"reasoning_content": "Well é 🙂.", "content": "Wait."}
    if last == "Well":
        expected = {"reasoning_content": "Well"}
    elif last == "Wai":
        expected["content"] = "Wai"
    assert fields == expected
    assert stream.message == {"role": "assistant", **expected}


def test_cut_at_any_character_half_a_tool_call_is_none() -> None:
    for template, call in [(QWEN, JSON_CALL), (XML, XML_CALL)]:
        text = f"{THOUGHT}Wait.\n{call}"
        for length in range(len(text) + 1):
            response = new_response(template)
            pieces = response.feed(text[:length])
            pieces += response.finish(has_ended=False)
            fields = {piece.field for piece in pieces}
            assert ("tool_calls" in fields) == (length == len(text)), text[:length]
            assert ("tool_calls" in response.message) == (length == len(text))
            assert "<" not in str(response.message)
            assert response.message["role"] == "assistant"
            if length > len(THOUGHT) + 4:
                assert response.message["content"].startswith("Wait")
                assert response.message["reasoning_content"] == "Well é 🙂."


async def test_a_malformed_tool_call_arrives_as_text_and_what_follows_is_parsed() -> None:
    text = f"One.\n<tool_call>\n{{nonsense\n</tool_call>\n{JSON_CALL}\n"
    async with stream_of(text, tools=TOOLS) as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [
        ("content", "One."),
        ("tool_calls", "\n{nonsense\n"),
        ("tool_calls", CALLED),
    ]
    assert stream.message == {"role": "assistant", "content": "One.", "tool_calls": [CALLED]}
    assert stream.finish_reason is FinishReason.EOS
    assert stream.token_ids == [*TOKENIZER.encode(text), EOS]


async def test_content_after_a_malformed_tool_call_arrives() -> None:
    async with stream_of("<tool_call>[</tool_call>Sorry <think>hm</think> no") as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [
        ("tool_calls", "["),
        ("content", "Sorry"),
        ("reasoning_content", "hm"),
        ("content", "no"),
    ]
    assert stream.message == {"role": "assistant", "reasoning_content": "hm", "content": "no"}


async def test_a_model_that_ends_in_a_tool_call_without_closing_it() -> None:
    async with stream_of('<tool_call>{"name": ') as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [("tool_calls", '{"name": ')]
    assert stream.message == {"role": "assistant"}
    async with stream_of('<tool_call>{"name": "go"}') as stream:
        await stream.read()
    assert stream.message == parsed('<tool_call>{"name": "go"}')


async def test_what_the_prompt_opens_is_known_and_not_delivered() -> None:
    async with stream_of("so\n</think>\nYes", prompt=PROMPT + "<think>\nFirst, ") as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [("reasoning_content", "so"), ("content", "Yes")]
    assert stream.message == {
        "role": "assistant",
        "reasoning_content": "First, so",
        "content": "Yes",
    }
    async with stream_of(" is it.", prompt=PROMPT + THOUGHT + "That") as stream:
        assert await stream.read() == " is it."
    assert stream.message["content"] == "That is it."
    assert stream.message["reasoning_content"] == "Well é 🙂."


async def test_a_prompt_that_opens_no_answer_is_no_part_of_it() -> None:
    async with stream_of("Yes", prompt="Is it?") as stream:
        await stream.read()
    assert stream.message == {"role": "assistant", "content": "Yes"}


async def test_an_eos_that_the_template_does_not_know_is_not_delivered() -> None:
    async with stream_text(
        llama(),
        tokenizer(),
        "one",
        parse_response=QWEN,
        max_new_tokens=30,
        logits_processor=[Say("<think>so</think>Yes", EOS)],
    ) as stream:
        assert await stream.read() == "Yes"
    assert stream.token_ids[-1] == EOS
    assert stream.message == {"role": "assistant", "reasoning_content": "so", "content": "Yes"}


@pytest.mark.parametrize("ends", [True, False])
async def test_white_space_after_a_tool_call_does_not_take_the_contents_place(ends: bool) -> None:
    text = f"Yes\n{JSON_CALL}\n"
    async with stream_of(text, ends=ends) as stream:
        assert await stream.read() == "Yes"
    assert stream.message == parsed(text + "<|im_end|>")
    assert stream.message["content"] == "Yes"


async def test_with_special_tokens_it_is_parsed_as_the_template_says() -> None:
    async with stream_of("<think>so", skip_special_tokens=False) as stream:
        await stream.read()
    assert stream.message == parsed("<think>so<|im_end|>")


async def test_stop_strings_are_found_in_any_field() -> None:
    async with stream_of(THOUGHT + "Yes", stop="é 🙂") as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [("reasoning_content", "Well")]
    assert stream.stop_string == "é 🙂"
    assert stream.message == {"role": "assistant", "reasoning_content": "Well"}


async def test_a_stop_string_that_closes_a_tool_call_closes_it() -> None:
    text = f"{JSON_CALL}\n{JSON_CALL}"
    async with stream_of(text, stop="</tool_call>", tools=TOOLS) as stream:
        pieces = [piece async for piece in stream]
    assert told(pieces) == [("tool_calls", CALLED)]
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert stream.message == {"role": "assistant", "tool_calls": [CALLED]}


async def test_each_id_comes_once_and_in_order() -> None:
    text = f"{THOUGHT}Wait.\n{JSON_CALL}\n{XML_CALL} é"
    async with stream_of(text, logprobs=True) as stream:
        pieces = [piece async for piece in stream]
    ids = [token_id for piece in pieces for token_id in piece.token_ids]
    assert stream.token_ids == [*TOKENIZER.encode(text), EOS]
    assert ids == stream.token_ids[: len(ids)]
    for piece in pieces:
        assert piece.logprobs is not None
        assert len(piece.logprobs) == len(piece.token_ids)


async def test_a_lagging_consumer_gets_one_piece_for_each_field() -> None:
    text = f"{THOUGHT}Wait.\n{JSON_CALL}\n{JSON_CALL}Done"
    async with stream_of(text, tools=TOOLS) as stream:
        with anyio.fail_after(30):
            while not worker_left(stream):
                await anyio.sleep(0.01)
        pieces = [piece async for piece in stream]
    assert [(piece.field, piece.value) for piece in pieces] == [
        ("reasoning_content", "Well é 🙂."),
        ("content", "Wait."),
        ("tool_calls", CALLED),
        ("tool_calls", CALLED),
        ("content", "Done"),
    ]
    assert [*pieces] == ["", "Wait.", "", "", "Done"]
    ids = [token_id for piece in pieces for token_id in piece.token_ids]
    assert ids == stream.token_ids[: len(ids)]
    assert stream.finish_reason is FinishReason.EOS


class SayEach(LogitsProcessor):
    """Makes each row of a batch say its own ids."""

    def __init__(self, *rows: list[int]) -> None:
        self.rows = rows
        self.position = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores[:] = -math.inf
        for index, ids in enumerate(self.rows):
            scores[index, ids[self.position] if self.position < len(ids) else EOS] = 0.0
        self.position += 1
        return scores


async def test_rows_of_a_batch_have_messages_of_their_own() -> None:
    texts = [THOUGHT + "Yes", JSON_CALL, "No " * 30]
    async with stream_batch(
        llama(),
        TOKENIZER,
        [PROMPT, PROMPT + "<think>so</think>", "hi"],
        parse_response=QWEN,
        tools=TOOLS,
        max_new_tokens=90,
        logits_processor=[SayEach(*map(TOKENIZER.encode, texts))],
    ) as stream:
        assert stream.message == [None] * 3
        rows: list[list[TextChunk]] = [[], [], []]
        async for piece in stream:
            rows[piece.row].append(piece)
    assert told(rows[0]) == [("reasoning_content", "Well é 🙂."), ("content", "Yes")]
    assert told(rows[1]) == [("tool_calls", CALLED)]
    shown = texts[2][:90].strip()
    assert told(rows[2]) == [("content", shown)]
    assert stream.text == ["Yes", "", shown]
    assert stream.message == [
        {"role": "assistant", "reasoning_content": "Well é 🙂.", "content": "Yes"},
        {"role": "assistant", "reasoning_content": "so", "tool_calls": [CALLED]},
        {"role": "assistant", "content": shown},
    ]
    eos, length = FinishReason.EOS, FinishReason.LENGTH
    assert stream.finish_reason == [eos, eos, length]


async def test_a_stopped_a_left_and_a_cancelled_stream_have_a_message() -> None:
    text = THOUGHT + "Yes, " * 100
    async with stream_of(text) as stream:
        async for piece in stream:
            if piece:
                stream.stop()
    assert stream.finish_reason is FinishReason.STOPPED
    assert stream.message["content"] == stream.text
    async with stream_of(text) as stream:
        async for piece in stream:
            if piece:
                break
    assert stream.finish_reason is FinishReason.CANCELLED
    assert stream.message["content"].startswith(stream.text)
    assert stream.message["reasoning_content"] == "Well é 🙂."
    with anyio.CancelScope() as scope:
        async with stream_of(text) as stream:
            async for piece in stream:
                if piece:
                    scope.cancel()
    assert stream.message["role"] == "assistant"


async def test_a_failed_generation_has_a_message() -> None:
    class Failing(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            if "".join(TOKENIZER.decode(input_ids[0])).endswith("half <tool_call>{"):
                raise ZeroDivisionError
            return False

    async with stream_of("A half <tool_call>{}", stopping_criteria=[Failing()]) as stream:
        with pytest.raises(ZeroDivisionError):
            await stream.read()
    assert stream.finish_reason is FinishReason.ERROR
    assert stream.message == {"role": "assistant", "content": "A half"}


async def test_a_required_field_that_was_not_reached_is_no_error() -> None:
    fields = {**QWEN["fields"], "content": {"content": "text", "optional": False}}
    template = {**QWEN, "fields": fields}
    async with stream_of("<think>so", ends=False, parse_response=template) as stream:
        await stream.read()
    assert stream.message == {"role": "assistant", "reasoning_content": "so"}
    assert fields["content"] == {"content": "text", "optional": False}


async def test_true_takes_the_template_of_the_tokenizer_or_the_processor() -> None:
    own = new_tokenizer()
    own.response_template = QWEN
    processor = TinyProcessor(own)
    other: Any = TinyProcessor(new_tokenizer())
    other.response_template = QWEN
    for each in (own, processor, other):
        async with stream_text(
            llama(),
            each,
            PROMPT,
            parse_response=True,
            max_new_tokens=30,
            logits_processor=[Say("<think>so</think>Yes", EOS)],
        ) as stream:
            assert await stream.read() == "Yes"
        expected = {"role": "assistant", "reasoning_content": "so", "content": "Yes"}
        assert stream.message == expected


async def test_without_it_there_are_no_fields() -> None:
    async with stream_text(llama(), tokenizer(), "one", max_new_tokens=9) as stream:
        pieces = [piece async for piece in stream]
    assert {(piece.field, piece.value) for piece in pieces} == {(None, None)}
    assert stream.message is None
    async with stream_batch(llama(), tokenizer(), ["one"], max_new_tokens=9) as batch:
        await batch.read()
    assert batch.message == [None]


@pytest.mark.parametrize("stream", [stream_text, stream_batch])
def test_what_cannot_be_parsed_is_refused_at_once(stream: Any) -> None:
    class Bare:
        """A tokenizer of an older transformers, or of something else."""

        encode = decode = staticmethod(tokenizer().decode)
        response_template = QWEN

    prompt = "one" if stream is stream_text else ["one"]

    with pytest.raises(ValueError, match=r"parse_response=True.*tokenizer\.response_template"):
        stream(llama(), tokenizer(), prompt, parse_response=True)
    with pytest.raises(ValueError, match=r"parse_response=\{"):
        stream(llama(), TinyProcessor(tokenizer()), prompt, parse_response=True)
    with pytest.raises(ValueError, match=r"parse_response: .*get_response_parser"):
        stream(llama(), Bare(), prompt, parse_response=True)
    with pytest.raises(TypeError, match="parse_response must be"):
        stream(llama(), tokenizer(), prompt, parse_response="qwen3")
    templates: list[Any] = [{}, {"fields": {"content": {}}}, {**QWEN, "fields": {"content": 1}}]
    for malformed in templates:
        with pytest.raises(ValueError, match=r"start_anchor|dict"):
            stream(llama(), tokenizer(), prompt, parse_response=malformed)


# -- the parts, against transformers' own parser of complete answers


def new_response(
    template: dict[str, Any], prefix: str = PROMPT, tools: Any = None
) -> ResponseParser:
    checked = validate_template(TOKENIZER, TOKENIZER, template)
    assert checked is not None
    return ResponseParser(TOKENIZER, checked, TOKENIZER.encode(prefix), tools)


def shipped() -> list[Any]:
    """The templates that ``transformers serve`` has for tokenizers without one."""
    try:
        from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS as fallbacks
    except ImportError:
        return []
    return [pytest.param(template, id=types[0]) for types, template in fallbacks.items()]


GEMMA_CALL = '<|tool_call>call:wait{seconds:"7",why:<|"|>7<|"|>}<tool_call|>'
ANSWERS = [
    "",
    "Hello.\n\nYou.",
    THOUGHT + "Yes",
    THOUGHT + "Yes\n" + JSON_CALL + "\n" + JSON_CALL + "<|im_end|>\n",
    THOUGHT + XML_CALL + "\n" + XML_CALL + "<|im_end|>\n<|endoftext|>",
    XML_CALL,
    "so</think> 1 < 2 <b>bold</b> <tool <think",
    "<|channel>thought\nWell.\n<channel|>Wait." + GEMMA_CALL + GEMMA_CALL + "<|tool_response>",
    "<|channel>thought\n<channel|>4 < 5 <turn|>",
]
PREFIXES = ["", PROMPT, PROMPT + "<think>\n", PROMPT + "<think>\n\n</think>\n\n"]


@pytest.mark.parametrize("template", [QWEN, XML, *shipped()])
def test_the_message_is_that_of_the_complete_answer(template: dict[str, Any]) -> None:
    chance = random.Random(0)
    compared = 0
    for prefix in [*PREFIXES, "<|turn>user\nhi<turn|>\n<|turn>model\n"]:
        for text in ANSWERS:
            anchors = template["start_anchor"]
            if prefix and not any(
                each in prefix for each in ([anchors] if isinstance(anchors, str) else anchors)
            ):
                continue
            try:
                expected = parsed(text, template, prefix=prefix, tools=TOOLS)
            except (KeyError, ValueError):
                continue  # this text is none of this template's
            compared += 1
            for longest in (1, 2, 5, 30, 1000):
                response = new_response(template, prefix, TOOLS)
                pieces, rest = [], text
                while rest:
                    length = chance.randint(1, longest)
                    pieces += response.feed(rest[:length])
                    rest = rest[length:]
                pieces += response.finish(has_ended=True)
                assert response.message == expected
                calls = [piece.value for piece in pieces if piece.field == "tool_calls"]
                assert calls == expected.get("tool_calls", [])
    assert compared >= 8


def test_fields_that_are_joined_or_repeated_are_so_without_the_parsers_message() -> None:
    fields = {
        "thinking": {"open": "[t]", "close": "[/t]", "repeats": True, "join": "\n"},
        "notes": {"open": "[n]", "close": "[/n]", "repeats": True},
        "number": {"open": "[i]", "close": "[/i]", "content": "int"},
        "call": {"open": "[c]", "close": "[/c]", "content": "json"},
        "content": {"content": "text", "content_args": {"strip": False}},
    }
    template = {"start_anchor": ">", "defaults": {"role": "a", "notes": []}, "fields": fields}
    text = "[t]a[/t][n]1[/n][t]b[/t][n]2[/n][i]7[/i] x "
    expected = parsed(text, template, prefix=">")
    assert expected == {
        "role": "a",
        "notes": ["1", "2"],
        "thinking": "a\nb",
        "number": 7,
        "content": " x ",
    }
    for more in ("[c]{", "[c]{[/c]", "[i]seven[/i]", "[i]seven", "[c"):
        for has_ended in (False, True):
            response = new_response(template, ">")
            response.feed(text + more)
            response.finish(has_ended=has_ended)
            is_text = has_ended and more == "[c"
            kept = {**expected, "content": " x [c"} if is_text else expected
            assert response.message == kept, more


def test_the_streamed_kinds_are_those_of_transformers() -> None:
    parsers = pytest.importorskip("transformers.utils.chat_parsing.content_parsers")
    assert parsers.STREAMABLE_PARSERS == STREAMED


# -- markers inside of values

JSON_FAMILIES = [name for name, family in FAMILIES.items() if '{"seconds": 7}' in family.call]
FEWER = settings(max_examples=settings().max_examples // 4)  # each makes several parsers
NEAR_MARKERS = ["</tool_call>", "<tool_call>", "[TOOL_CALLS]", '"', "\\", "}", "]", "\n", "\0", "é"]


@pytest.mark.parametrize("name", JSON_FAMILIES)
@given(data=st.data())
@FEWER
def test_a_marker_in_an_argument_is_a_part_of_it(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]
    texts = st.lists(
        st.sampled_from([*family.special, *NEAR_MARKERS]) | st.text(max_size=3), max_size=4
    ).map("".join)
    either = texts | st.lists(texts | st.integers(), max_size=2)
    arguments = data.draw(st.dictionaries(texts, either, max_size=2))
    written = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()))
    times = 2 if family.fields["tool_calls"].get("repeats") else 1
    text = family.call.replace('{"seconds": 7}', written) * times
    template = validate_template(family.tokenizer, family.tokenizer, family.template)
    assert template is not None
    response = ResponseParser(family.tokenizer, template, (), None)
    pieces = []
    for part in parts_of(text, data):
        pieces += response.feed(part)
    pieces += response.finish(has_ended=True)
    called = {"name": "wait", "arguments": arguments}
    values = [each for piece in pieces for each in in_list(piece.value)]
    assert [each["function"] for each in values] == [called] * times
    kept = in_list(response.message["tool_calls"])
    assert [each["function"] for each in kept] == [called] * times


def parts_of(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def in_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<", ">", "/", " ", "\n"),
    *('{"name": "wait", "arguments": {"why": "', '"}}', '"', "\\", "x", '{"name": "wait"}'),
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.booleans(), st.data())
@FEWER
def test_how_an_answer_is_cut_into_pieces_changes_nothing(
    text: str, has_ended: bool, data: st.DataObject
) -> None:
    found = []
    for parts in ([text], list(text), parts_of(text, data)):
        response = new_response(QWEN)
        pieces = []
        for part in parts:
            pieces += response.feed(part)
        pieces += response.finish(has_ended=has_ended)
        joined: list[Any] = []
        for piece in pieces:
            is_more = joined and joined[-1][0] == piece.field and not piece.is_complete
            if is_more and isinstance(joined[-1][1], str) and not joined[-1][2]:
                joined[-1][1] += piece.value
            else:
                joined.append([piece.field, piece.value, piece.is_complete])
        found.append((joined, response.message))
    assert found[0] == found[1] == found[2]


OPEN_STRING = '<tool_call>{"name": "wait", "arguments": {"why": "so</tool_call>'
UNPARSED = {"field": "tool_calls", "value": '{"name": "wait", "arguments": {"why": "so'}


@pytest.mark.parametrize("rest", ["Sorry", "\nSorry", ' "Sorry"', "\\\nSorry", f"\n{JSON_CALL}\n"])
async def test_a_string_that_does_not_end_swallows_nothing(rest: str) -> None:
    """A call that does not parse with the marker in it has ended there."""
    async with stream_of(OPEN_STRING + rest, tools=TOOLS) as stream:
        pieces = told([piece async for piece in stream])
    following = ("tool_calls", CALLED) if JSON_CALL in rest else ("content", rest.lstrip())
    assert pieces == [(UNPARSED["field"], UNPARSED["value"]), following]


@pytest.mark.parametrize("more", ["", "Sor", '"'])
@pytest.mark.parametrize("stop", [[], ["</tool_call>"]])
async def test_a_call_that_is_cut_behind_a_marker_in_a_string_is_none(
    more: str, stop: list[str]
) -> None:
    async with stream_of(OPEN_STRING + more, ends=False, stop=stop) as stream:
        assert [piece async for piece in stream if piece.field] == []
    assert stream.message == {"role": "assistant"}
    assert stream.stop_string == (stop[0] if stop else None)


def test_values_that_do_not_parse_inside_of_each_other_do_not_exhaust_the_stack() -> None:
    response = new_response(QWEN)
    pieces = response.feed('<tool_call>{\\"<x</tool_call>' * 300 + "\n")
    pieces += response.finish(has_ended=True)
    assert len([piece for piece in pieces if piece.field == "tool_calls"]) == 300
