"""The shapes in which real servers send tool calls, text, reasons, counts and errors. No torch."""

from __future__ import annotations

import json
import logging
from itertools import permutations
from typing import Any

import anyio
import openai
import pytest
from anyio.abc import SocketStream

from anystreamer import FinishReason, Usage
from anystreamer.remote import _reader
from anystreamer.remote._limits import Limits
from anystreamer.remote._response import RemoteRow, ResponseParser
from anystreamer.remote._sse import EventData
from anystreamer.remote._tool_calls import ToolCalls

from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import PATIENCE, until
from ..helpers.wire import CLOSING, DONE, HEAD, Play, chunked, event, sends, wire

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

CHAT = [{"role": "user", "content": "Hi!"}]


def chunk(delta: Any = None, reason: Any = None, **more: Any) -> dict[str, Any]:
    """An event of a chat."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "choices": [choice], **more}


def part(arguments: Any = None, name: Any = None, **more: Any) -> dict[str, Any]:
    """A delta of a tool call. What is None is left out."""
    function = {"name": name, "arguments": arguments}
    return {"function": {k: v for k, v in function.items() if v is not None}, **more}


def called(name: str, id: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A tool call as a message has it."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call if id is None else {"id": id, **call}


async def answered(play: Play, prompt: Any = CHAT, **kwargs: Any) -> tuple[list[Any], Any]:
    """The chunks of an answer, and its stream."""
    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(prompt, **kwargs) as stream:
            return [piece async for piece in stream], stream


async def fails(play: Play, message: str) -> None:
    """Expect an answer to end with an error from the server or the connection."""
    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(CHAT) as stream:
            with pytest.raises(openai.APIError, match=message):
                await stream.read()
            assert stream.finish_reason is FinishReason.ERROR


async def answer_of(*events: Any, **kwargs: Any) -> tuple[list[Any], Any]:
    """The same for events, and the last event of all."""
    return await answered(sends(HEAD + chunked(*map(event, events), DONE, b"")), **kwargs)


# -- tool calls: the deltas of each event, and the calls that they are

F1, G2 = called("f", "a", x=1), called("g", "b", y=2)
BARE_F1, BARE_G2 = called("f", x=1), called("g", y=2)
HALVES = [('{"x":', "1}"), ('{"y":', "2}")]

CALLS: dict[str, tuple[list[Any], list[Any]]] = {
    "OpenAI: one after the other": (
        [
            [part("", "f", index=0, id="a")],
            [part('{"x":', index=0)],
            [part("1}", index=0)],
            [part("", "g", index=1, id="b")],
            [part('{"y":2}', index=1)],
        ],
        [F1, G2],
    ),
    "OpenAI: interleaved": (
        [
            [part("", "f", index=0, id="a")],
            [part("", "g", index=1, id="b")],
            [part('{"x":', index=0)],
            [part('{"y":', index=1)],
            [part("1}", index=0), part("2}", index=1)],
        ],
        [F1, G2],
    ),
    "OpenAI: the arguments in another order than the calls": (
        [
            [part("", "f", index=0, id="a"), part("", "g", index=1, id="b")],
            [part('{"y":2}', index=1)],
            [part('{"x":1}', index=0)],
        ],
        [F1, G2],
    ),
    "LiteLLM: indexes that begin at 1, with a gap": (
        [
            [part("", "f", index=1, id="a")],
            [part('{"x":1}', index=1)],
            [part("", "g", index=4, id="b")],
            [part('{"y":2}', index=4)],
        ],
        [F1, G2],
    ),
    "SGLang: nulls in place of what is left out": (
        [
            [part("", "f", index=0, id="a")],
            [{"index": 0, "id": None, "function": {"name": None, "arguments": '{"x":1}'}}],
        ],
        [F1],
    ),
    "DashScope: empty strings in place of what is left out": (
        [
            [part("", "f", index=0, id="a")],
            [part('{"x":', "", index=0, id="")],
            [part("1}", "", index=0, id="")],
        ],
        [F1],
    ),
    "Gemini, Ollama: whole calls, all with the index 0": (
        [[part('{"x":1}', "f", index=0, id="a")], [part('{"y":2}', "g", index=0, id="b")]],
        [F1, G2],
    ),
    "whole calls of one function, all with the index 0": (
        [[part('{"x":1}', "f", index=0, id="a")], [part('{"x":2}', "f", index=0, id="b")]],
        [F1, called("f", "b", x=2)],
    ),
    "any-llm: whole calls of one function, all with one index and one id": (
        [[part('{"x":1}', "f", index=0, id="a")], [part('{"x":2}', "f", index=0, id="a")]],
        [F1, called("f", "a", x=2)],
    ),
    "whole calls with the index 0 and no ids": (
        [
            [part('{"x":1}', "f", index=0)],
            [part('{"x":1}', "f", index=0)],
            [part('{"y":2}', "g", index=0)],
        ],
        [BARE_F1, BARE_F1, BARE_G2],
    ),
    "calls that differ in their index alone": (
        [[part('{"x":1}', "f", index=0, id="a"), part('{"x":1}', "f", index=1, id="a")]],
        [F1, F1],
    ),
    "no index: whole calls in one event": (
        [[part('{"x":1}', "f", id="a"), part('{"y":2}', "g", id="b")]],
        [F1, G2],
    ),
    "no index: whole calls in an event each": (
        [[part('{"x":1}', "f", id="a")], [part('{"y":2}', "g", id="b")]],
        [F1, G2],
    ),
    "no index: one after the other": (
        [
            [part("", "f", id="a")],
            [part('{"x":')],
            [part("1}")],
            [part("", "g", id="b")],
            [part('{"y":2}')],
        ],
        [F1, G2],
    ),
    "no index: interleaved by id": (
        [
            [part("", "f", id="a"), part("", "g", id="b")],
            [part('{"x":', id="a")],
            [part('{"y":2}', id="b")],
            [part("1}", id="a")],
        ],
        [F1, G2],
    ),
    "no index, no id: interleaved by name": (
        [
            [part('{"x":', "f")],
            [part('{"y":', "g")],
            [part("1}", "f")],
            [part("2}", "g")],
        ],
        [BARE_F1, BARE_G2],
    ),
    "no index, no id: calls of one function": (
        [[part('{"x":1}', "f")], [part('{"x":', "f")], [part("2}", "f")]],
        [BARE_F1, called("f", x=2)],
    ),
    "no index: the arguments in the order of the calls": (
        [[part("", "f", id="a"), part("", "g", id="b")], [part('{"x":1}'), part('{"y":2}')]],
        [F1, G2],
    ),
    "the name in each delta": (
        [
            [part('{"x":', "f", index=0, id="a")],
            [part("1}", "f", index=0, id="a")],
            [part("", "f", index=0, id="a")],
        ],
        [F1],
    ),
    "the name in each delta, and no id": (
        [[part('{"x":', "f", index=0)], [part("1}", "f", index=0)], [part("", "f", index=0)]],
        [BARE_F1],
    ),
    "the name in each delta, and the id in the first": (
        [[part('{"x":', "f", index=0, id="a")], [part("1}", "f", index=0)]],
        [F1],
    ),
    "a new id in each delta": (
        [[part("", "f", index=0, id="a")], [part('{"x":1}', index=0, id="z")]],
        [F1],
    ),
    "the id before the name": (
        [[{"index": 0, "id": "a", "type": "function"}], [part('{"x":1}', "f", index=0)]],
        [F1],
    ),
    "the id before the name, and no index": ([[{"id": "a"}], [part('{"x":1}', "f")]], [F1]),
    "vmlx: an empty name before the name": (
        [[part("", "", index=0, id="a")], [part('{"x":1}', "f", index=0, id="a")]],
        [F1],
    ),
    "LibreChat: the name on one index, the arguments on another": (
        [[part("", "f", index=2, id="a")], [part('{"x":', index=1)], [part("1}", index=1)]],
        [F1],
    ),
    "the whole call again at the end": (
        [
            [part("", "f", index=0, id="a")],
            [part('{"x":1}', index=0)],
            [part('{"x":1}', "f", index=0, id="a")],
        ],
        [F1],
    ),
    "MiniMax: arguments as an object": ([[part({"x": 1}, "f", index=0, id="a")]], [F1]),
    "arguments as JSON in JSON": ([[part(json.dumps('{"x":1}'), "f", index=0, id="a")]], [F1]),
    "vLLM: null before the arguments": (
        [
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}],
            [part('{"x":1}')],
        ],
        [F1],
    ),
    "no arguments, in every way": (
        [
            [part(None, "f", index=0, id="a")],
            [part("", "f", index=1, id="b")],
            [part("null", "f", index=2, id="c")],
            [part(" {}\n", "f", index=3, id="d")],
            [part({}, "f", index=4, id="e")],
        ],
        [called("f", id) for id in "abcde"],
    ),
    "older TGI: one delta, and not a list": (
        [part("", "f", index=0, id="a"), part('{"x":1}', index=0)],
        [F1],
    ),
    "no function around name and arguments": (
        [[{"index": 0, "id": "a", "name": "f", "arguments": {"x": 1}}]],
        [F1],
    ),
    "Gemini: what its next request has to bring back": (
        [[part('{"x":1}', "f", index=0, id="a", extra_content={"signature": "s"})]],
        [{**F1, "extra_content": {"signature": "s"}}],
    ),
    "OpenAI: a custom tool, whose input is any text": (
        [
            [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": ""}}],
            [{"index": 0, "custom": {"input": "select "}}],
            [{"index": 0, "custom": {"input": "1"}}],
        ],
        [{"id": "a", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}],
    ),
    "malformed arguments": (
        [[part("{x", "f", index=0, id="a")], [part('{"y":2}', "g", index=1, id="b")]],
        ["{x", G2],
    ),
    "arguments that are not an object": ([[part("[1]", "f", index=0, id="a")]], ["[1]"]),
    "arguments without a name": ([[part('{"x":1}', index=0, id="a")]], ['{"x":1}']),
    "nothing at all": ([[{"index": 0, "id": "a", "type": "function"}]], []),
}


@pytest.mark.parametrize(("events", "calls"), CALLS.values(), ids=CALLS.keys())
async def test_tool_calls_are_complete_at_the_end(events: list[Any], calls: list[Any]) -> None:
    pieces, stream = await answer_of(
        *(chunk({"tool_calls": deltas}) for deltas in events), chunk(reason="tool_calls")
    )
    assert [(piece.field, piece.value) for piece in pieces] == [
        ("tool_calls", call) for call in calls
    ]
    whole = [call for call in calls if not isinstance(call, str)]
    assert stream.message == {
        "role": "assistant",
        **({"tool_calls": whole} if whole else {"content": ""}),
    }
    assert stream.finish_reason is FinishReason.EOS


def test_pieces_of_three_calls_in_every_order() -> None:
    names = ("f", "g", "h")
    starts = [part("", name, index=i, id=name) for i, name in enumerate(names)]
    pieces = [(i, text) for i, name in enumerate(names) for text in (f'{{"{name}":', f"{i}}}")]
    expected = [called(name, name, **{name: i}) for i, name in enumerate(names)]
    for order in permutations(range(len(pieces))):
        if all(order.index(2 * i) < order.index(2 * i + 1) for i in range(3)):
            calls = ToolCalls(Limits())
            calls.feed(starts)
            for each in order:
                index, text = pieces[each]
                calls.feed([part(text, index=index)])
            assert calls.finish(is_cut=False) == expected


@pytest.mark.parametrize("way", ["length", "connection"])
async def test_of_an_answer_that_was_cut_only_whole_calls_are_given(way: str) -> None:
    events = [
        chunk({"tool_calls": [part("", "f", index=0, id="a"), part("", "g", index=1, id="b")]}),
        chunk({"tool_calls": [part('{"y":2}', index=1), part('{"x":', index=0)]}),
        chunk({"tool_calls": [part("", "h", index=2, id="c")]}),
    ]
    ending = [event(chunk(reason="length")), DONE, b""] if way == "length" else []
    play = sends(HEAD + chunked(*map(event, events), *ending))
    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(CHAT) as stream:
            pieces = []
            try:
                async for piece in stream:
                    pieces.append(piece.value)
            except openai.APIConnectionError:
                assert way == "connection"
    assert pieces == [G2]
    assert stream.message["tool_calls"] == [G2]


async def test_the_old_function_call_is_a_tool_call() -> None:
    deltas = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"x":'}, "tool_calls": None},
        {"function_call": {"arguments": "1}"}},
    ]
    pieces, stream = await answer_of(*map(chunk, deltas), chunk(reason="function_call"))
    assert [piece.value for piece in pieces] == [BARE_F1]
    assert stream.message == {"role": "assistant", "tool_calls": [BARE_F1]}


async def test_a_call_that_is_sent_in_both_ways_is_one_call() -> None:
    both = {
        "tool_calls": [part('{"x":1}', "f", index=0, id="a")],
        "function_call": {"name": "f", "arguments": '{"x":1}'},
    }
    pieces, _ = await answer_of(chunk(both), chunk(reason="tool_calls"))
    assert [piece.value for piece in pieces] == [F1]


# -- text

THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
TEXTS: dict[str, tuple[list[Any], list[tuple[str, str]]]] = {
    "parts": (
        [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [("content", "ab")],
    ),
    "one part": ([{"content": {"type": "text", "text": "a"}}], [("content", "a")]),
    "parts that are text": ([{"content": ["a", "b"]}], [("content", "ab")]),
    "no parts": ([{"content": []}, {"content": "a"}], [("content", "a")]),
    "Mistral: thinking among the parts": (
        [{"content": [THINKING, {"type": "text", "text": "a"}]}],
        [("reasoning_content", "Hm."), ("content", "a")],
    ),
    "thinking as text": (
        [{"content": [{"type": "thinking", "thinking": "Hm."}]}, {"content": "a"}],
        [("reasoning_content", "Hm."), ("content", "a")],
    ),
    "a part that is a refusal": (
        [{"content": [{"type": "refusal", "refusal": "No."}]}],
        [("refusal", "No.")],
    ),
    "parts without text": (
        [{"content": [{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "a"}]}],
        [("content", "a")],
    ),
    "reasoning under other names": (
        [{"reasoning": "a"}, {"reasoning_text": "b"}, {"thinking": "c"}],
        [("reasoning_content", "abc")],
    ),
    "LiteLLM: reasoning in several forms at once": (
        [{"reasoning_content": "a", "reasoning": "a", "thinking_blocks": [THINKING]}],
        [("reasoning_content", "a")],
    ),
    "nulls": (
        [
            {"content": None, "reasoning_content": None, "refusal": None, "tool_calls": None},
            {},
            {"content": "a", "function_call": None},
        ],
        [("content", "a")],
    ),
}


@pytest.mark.parametrize(("deltas", "expected"), TEXTS.values(), ids=TEXTS.keys())
async def test_text_in_every_form(deltas: list[Any], expected: list[tuple[str, str]]) -> None:
    pieces, stream = await answer_of(*map(chunk, deltas), chunk(reason="stop"), parse_response=True)
    assert [(piece.field, piece.value) for piece in pieces] == expected
    assert stream.text == dict(expected).get("content", "")


EMPTY: list[Any] = [
    {"choices": [], "prompt_filter_results": []},  # Azure
    {"choices": None, "usage": None},
    {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
    {"choices": [{"index": 0, "content_filter_results": {}, "finish_reason": None}]},  # Azure
    {"choices": [None]},
    {"type": "ping"},
    {"error": None, "choices": []},
    {"code": 0, "message": "ok"},
    {"choices": None, "base_resp": {"status_code": 0, "status_msg": ""}},  # MiniMax
    {"choices": [{"index": 0, "delta": {}, "finish_reason": False}]},
    {},
]


async def test_events_without_text_change_nothing() -> None:
    blank = (
        b"data:\n\ndata: \n\nevent: ping\nid: 1\n\n: OPENROUTER PROCESSING\n\n"
        b"retry: 10\n\nevent: error\n\n"  # without data it is no event
        b"data: : keepalive\n\n"  # Vertex
    )
    events = [*map(event, EMPTY), blank]
    body = [*events, event(chunk({"content": "a"})), *events, event(chunk(reason="stop")), *events]
    pieces, stream = await answered(sends(HEAD + chunked(*body, b"data: [DONE] \n\n", b"")))
    assert list(map(str, pieces)) == ["a"]
    assert (stream.finish_reason, stream.usage) == (FinishReason.EOS, None)


async def test_another_answer_beside_the_one_that_was_asked_for_is_not_mixed_in() -> None:
    other = {"index": 1, "delta": {"content": "B"}, "finish_reason": "length"}
    both = {"choices": [other, {"index": 0, "delta": {"content": "A"}}]}
    pieces, stream = await answer_of({"choices": [other]}, both, chunk(reason="stop"))
    assert list(map(str, pieces)) == ["A"]
    assert stream.finish_reason is FinishReason.EOS


async def test_an_index_that_is_text() -> None:
    choices = [{"index": i, "delta": {"content": c}} for i, c in (("0", "A"), ("1", "B"))]
    pieces, _ = await answer_of({"choices": choices}, chunk(reason="stop"))
    assert list(map(str, pieces)) == ["A"]


async def test_a_whole_message_in_place_of_deltas() -> None:
    message = {"role": "assistant", "content": "a", "tool_calls": [part({"x": 1}, "f", id="a")]}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    pieces, stream = await answer_of(whole)
    assert [(str(piece), piece.value) for piece in pieces] == [("a", None), ("", F1)]
    # MiniMax sends it after the deltas, as their sum.
    pieces, stream = await answer_of(chunk({"content": "a"}), whole)
    assert list(map(str, pieces)) == ["a"]
    assert stream.finish_reason is FinishReason.EOS


# -- finish reasons


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (("stop", "eos", "eos_token", "end_turn", "STOP", "COMPLETE"), FinishReason.EOS),
        (("tool_calls", "tool_use", "function_call"), FinishReason.EOS),
        (("normal", "whatever comes next", 7), FinishReason.EOS),  # not known
        (("length", "max_tokens", "MAX_TOKENS", "model_length"), FinishReason.LENGTH),
        (({"type": "length", "length": 16},), FinishReason.LENGTH),
        (("model_context_window_exceeded", "max_output_tokens"), FinishReason.LENGTH),
        (("stop_sequence", "STOP_SEQUENCE"), FinishReason.STOP_STRING),
        (("content_filter", "SAFETY", "sensitive", "refusal"), FinishReason.CRITERIA),
    ],
)
async def test_finish_reasons_of_other_makers(
    reasons: tuple[Any, ...], expected: FinishReason
) -> None:
    for reason in reasons:
        pieces, stream = await answer_of(chunk({"content": "a"}), chunk(reason=reason))
        assert list(map(str, pieces)) == ["a"]
        assert stream.finish_reason is expected, reason


@pytest.mark.parametrize(
    ("reasons", "expected", "stop_string"),
    [
        # The second one has nothing new, or says less.
        ([{"finish_reason": "length"}, {"finish_reason": "stop"}], FinishReason.LENGTH, None),
        ([{"finish_reason": "stop"}, {"finish_reason": "length"}], FinishReason.LENGTH, None),
        ([{"finish_reason": "SAFETY"}, {"finish_reason": "eos"}], FinishReason.CRITERIA, None),
        ([{"finish_reason": "stop"}, {"finish_reason": "tool_calls"}], FinishReason.EOS, None),
        (
            [{"finish_reason": "stop", "stop_reason": "END"}, {"finish_reason": "stop"}],
            FinishReason.STOP_STRING,
            "END",
        ),
        # What comes with more text is about all of it.
        (
            [
                {"finish_reason": "stop", "stop_reason": "END"},
                {"finish_reason": "stop", "delta": {"content": "b"}},
            ],
            FinishReason.EOS,
            None,
        ),
        (
            [{"finish_reason": "length"}, {"finish_reason": "stop", "delta": {"content": "b"}}],
            FinishReason.EOS,
            None,
        ),
    ],
)
async def test_two_reasons(
    reasons: list[Any], expected: FinishReason, stop_string: str | None
) -> None:
    events = [{"choices": [{"index": 0, "delta": {}, **each}]} for each in reasons]
    _, stream = await answer_of(chunk({"content": "a"}), *events, stop="END")
    assert (stream.finish_reason, stream.stop_string) == (expected, stop_string)


@pytest.mark.parametrize("reason", ["", "null", "None", "not_finished", None, False, 0, {}, []])
def test_reasons_that_stand_for_none(reason: Any) -> None:
    parser = ResponseParser(RemoteRow(), [], Limits(), logprobs=False, names_content=False)
    pieces = list(parser.feed(json.dumps(chunk({"content": "a"}, reason)).encode(), 0.0))
    assert (list(map(str, pieces)), parser.ended) == (["a"], None)


async def test_a_reason_beside_the_choices_and_under_another_name() -> None:
    beside = {"choices": [{"index": 0, "text": "a"}], "finish_reason": "length"}  # Together
    _, stream = await answer_of(beside, prompt="hi")
    assert stream.finish_reason is FinishReason.LENGTH
    camel = {"choices": [{"index": 0, "delta": {"content": "a"}, "finishReason": "length"}]}
    _, stream = await answer_of(camel)  # Gemini
    assert stream.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "reason", ["abort", "error", "ERROR", "cancelled", "insufficient_system_resource", "timeout"]
)
async def test_a_reason_that_is_a_failure_is_an_error(reason: str) -> None:
    events = [event(chunk({"content": "a"})), event(chunk(reason=reason))]
    await fails(sends(HEAD + chunked(*events, DONE, b"")), f"finish_reason='{reason}'")


@pytest.mark.parametrize("ending", ["done", "close"])
async def test_a_reason_with_each_piece_of_text_does_not_end_the_answer(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies of Gemini send "stop" each time. The next piece can come much later."""
    monkeypatch.setattr(_reader, "USAGE_TIMEOUT", 0.0)
    play_on = anyio.Event()

    async def play(stream: SocketStream) -> None:
        await stream.send(
            HEAD + chunked(b"".join(event(chunk({"content": c}, "stop")) for c in "ab"))
        )
        await play_on.wait()
        await stream.send(chunked(event(chunk({"content": "c"}, "length"))))
        await stream.send(chunked(DONE, b"") if ending == "done" else chunked(b""))

    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(CHAT) as stream:
            assert await stream.receive() == "ab"
            await anyio.wait_all_tasks_blocked()  # a deadline that has passed would end it now
            play_on.set()
            assert await stream.read() == "c"
    assert stream.finish_reason is FinishReason.LENGTH


async def test_more_text_can_take_long_after_a_reason_that_came_with_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ollama has sent "stop" with each piece of the reasoning, and then the answer."""
    monkeypatch.setattr(_reader, "USAGE_TIMEOUT", 0.0)
    monkeypatch.setattr(_reader, "MORE_TEXT_TIMEOUT", PATIENCE)
    play_on = anyio.Event()

    async def play(stream: SocketStream) -> None:
        await stream.send(HEAD + chunked(event(chunk({"reasoning": "Hm."}, "stop"))))
        await play_on.wait()
        await stream.send(chunked(event(chunk({"content": "a"}, "stop")), DONE, b""))

    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(CHAT) as stream:
            assert (await stream.receive()).value == "Hm."
            await anyio.wait_all_tasks_blocked()
            play_on.set()
            assert await stream.read() == "a"


async def test_a_reason_with_each_piece_of_text_does_not_make_a_cut_answer_whole() -> None:
    events = [event(chunk({"content": text}, "stop")) for text in "ab"]
    await fails(sends(HEAD + chunked(*events)), "closed the connection")
    error = event({"error": {"message": "boom"}})
    await fails(sends(HEAD + chunked(*events, error, DONE, b"")), "^boom$")


# -- usage

KNOWN = Usage(3, 2, 2)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, KNOWN),
        ({"prompt_tokens": 3, "completion_tokens": 2}, KNOWN),
        ({"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 5}, KNOWN),
        ({"completion_tokens": 2, "total_tokens": 5}, KNOWN),
        ({"input_tokens": 3, "output_tokens": 2}, KNOWN),
        ({"prompt_tokens": 3.0, "completion_tokens": "2"}, KNOWN),
        ({"prompt_tokens": 3, "completion_tokens": 0}, Usage(3, 0, 0)),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, None),
        ({"prompt_tokens": 3, "completion_tokens": None}, None),
        ({"prompt_tokens": 3}, None),
        ({"completion_tokens": 2}, None),
        ({"total_tokens": 5}, None),
        ({"prompt_tokens": 3, "completion_tokens": "many"}, None),
        ({"prompt_tokens": 3, "completion_tokens": {}, "total_tokens": 5}, KNOWN),
        ({"prompt_tokens": 3, "total_tokens": 0}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": -1, "completion_tokens": 2}, None),
        ({"other": 1}, None),
        ({}, None),
        (None, None),
        ([3, 2], None),
        ("five", None),
    ],
)
async def test_counts_that_are_not_known_are_none_and_the_answer_stands(
    usage: Any, expected: Usage | None
) -> None:
    for events in (
        [chunk({"content": "a"}), chunk(reason="stop", usage=usage)],
        [chunk({"content": "a"}), chunk(reason="stop"), {"choices": [], "usage": usage}],
        [chunk({"content": "a"}, usage=usage), chunk(reason="stop", usage=usage)],
    ):
        pieces, stream = await answer_of(*events)
        assert list(map(str, pieces)) == ["a"]
        assert (stream.usage, stream.finish_reason) == (expected, FinishReason.EOS)


@pytest.mark.parametrize(
    ("said", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 2}}, 2),
        ({"prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0}}, 2),
        ({"input_tokens_details": {"cached_tokens": 2}}, 2),
        ({"prompt_cache_hit_tokens": 2, "prompt_cache_miss_tokens": 1}, 2),  # DeepSeek
        ({"cached_tokens": 2}, 2),  # Moonshot
        ({"prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": "many"}}, 0),
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": [2]}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 9}}, 3),  # more than there are
        ({"prompt_tokens_details": {"cached_tokens": -1}}, 0),
    ],
)
async def test_tokens_from_the_server_s_cache(said: dict[str, Any], cached: int) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, **said}
    _, stream = await answer_of(chunk({"content": "a"}), chunk(reason="stop", usage=usage))
    assert stream.usage == Usage(3, 2, 2, cached)


async def test_usage_in_other_places() -> None:
    counts = {"prompt_tokens": 3, "completion_tokens": 2}
    in_choice = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": counts}]}
    for last in (in_choice, chunk(reason="stop", x_groq={"usage": counts})):  # Moonshot, Groq
        _, stream = await answer_of(chunk({"content": "a"}), last)
        assert stream.usage == KNOWN


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_counts_of_zero_stand_for_none(is_stopped: bool) -> None:
    """Ollama sends them with each piece of a completion; the counts come at the end."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    counts = {"prompt_tokens": 3, "completion_tokens": 2}
    pieces = [event({**chunk({"content": c}), "usage": zeros}) for c in "ab"]
    ends = [chunk(reason="stop", usage=zeros), {"choices": [], "usage": counts}, {"usage": zeros}]

    async def play(stream: SocketStream) -> None:
        await stream.send(HEAD + chunked(*pieces))
        if is_stopped:
            await stream.receive()  # until the client has gone
        await stream.send(chunked(*map(event, ends), DONE, b""))

    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(CHAT) as stream:
            assert await stream.receive()
            if is_stopped:
                stream.stop()
            await stream.read()
    assert stream.usage == (None if is_stopped else KNOWN)


async def test_of_several_counts_the_last_one_counts() -> None:
    def counts(completion: int) -> dict[str, Any]:
        return {"prompt_tokens": 3, "completion_tokens": completion}

    _, stream = await answer_of(
        chunk({"content": "a"}, usage=counts(1)), chunk(reason="stop", usage=counts(2))
    )
    assert stream.usage == KNOWN


# -- log-probabilities


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"content": [{"token": "a", "logprob": -0.5}], "refusal": None}, (-0.5,)),
        ({"content": None, "refusal": [{"token": "a", "logprob": -0.5}]}, (-0.5,)),
        ({"content": [{"token": "a", "logprob": None}]}, ()),
        ({"content": []}, ()),
        ({"tokens": ["a", "b"], "token_logprobs": [None, -0.5]}, (-0.5,)),
        ({"token_logprobs": None}, ()),
        (-0.5, (-0.5,)),  # Together
        (None, ()),
    ],
)
async def test_logprobs_in_every_form(sent: Any, expected: tuple[float, ...]) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": sent}
    (piece,), _ = await answer_of({"choices": [choice]}, chunk(reason="stop"), logprobs=True)
    assert piece.logprobs == expected


# -- errors


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "boom", "type": "server_error", "code": 500}},
        {"error": {"message": "boom"}, "choices": [{"delta": {}, "finish_reason": "error"}]},
        {"choices": [{"delta": {"content": ""}, "error": {"message": "boom"}}]},  # OpenRouter
        {"error": "boom", "error_type": "generation"},  # TGI
        {"object": "error", "message": "boom"},  # vLLM before 0.10
        {"type": "error", "message": "boom"},
        {"text": "boom", "error_code": 50001},  # FastChat
        {"detail": "boom"},  # FastAPI
        {"error": {"message": "boom"}, "message": "boom"},  # LM Studio
        {"error": {"code": "content_filter", "message": "boom", "innererror": {}}},  # Azure
        {"error": {"error": "boom"}},
        {"error": True, "message": "boom"},
        {"error_code": 336100, "error_msg": "boom"},  # Baidu
        {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "boom"}},  # MiniMax
        {"code": 10013, "message": "boom", "sid": "cha0"},  # Spark
        {"code": "InvalidParameter", "message": "boom", "request_id": "1"},  # DashScope
    ],
)
async def test_errors_in_every_form(error: Any) -> None:
    events = [event(chunk({"content": "a"})), event(error)]
    await fails(sends(HEAD + chunked(*events, DONE, b"")), "^boom$")


async def test_an_error_in_a_field_of_that_name() -> None:
    """llama.cpp sent errors so, and then the last event of all."""
    error = b'error: {"code":500,"message":"boom","type":"server_error"}\n\n'
    events = [event(chunk({"content": "a"})), error]
    await fails(sends(HEAD + chunked(*events, DONE, b"")), "^boom$")


@pytest.mark.parametrize(
    "error",
    [
        b'event: error\ndata: {"code":400,"details":"boom"}\n\n',  # fms-guardrails
        b'id:1\nevent:error\n:HTTP_STATUS/400\ndata:{"code":"X","message":"boom"}\n\n',  # DashScope
        b'event: error\ndata: {"error":{"message":"boom"}}\n\n',
        b'data: {"message":"boom"}\r\nevent: error\r\n\r\n',
        b"event: error\ndata: boom\n\n",
    ],
    ids=["fms-guardrails", "DashScope", "OpenAI", "the name after the data", "text"],
)
async def test_an_event_of_that_name_is_an_error(error: bytes) -> None:
    await fails(sends(HEAD + chunked(event(chunk({"content": "a"})), error, DONE, b"")), "^boom$")


async def test_an_event_after_one_that_is_an_error_by_its_name_is_none() -> None:
    events = EventData(Limits()).feed(b"event: error\n\ndata: 1\n\nevent: x\ndata: 2\n\n")
    assert list(events) == [b"1", b"2"]


@pytest.mark.parametrize(
    "late",
    [
        event({"error": {"message": "boom"}}),
        event(chunk(reason="error")),
        event({"choices": 7}),
        b"data: {not json}\n\n",
        b"data: \xff\n\n",
        b"data: 7\n\n",
    ],
)
async def test_what_goes_wrong_after_the_end_does_not_change_the_answer(
    late: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="anystreamer")
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    end = [event(chunk({"content": "a"})), event(chunk(reason="stop"))]
    for play in (
        sends(HEAD + chunked(*end, late, usage, DONE, b"")),
        sends(HEAD, *(chunked(each) for each in (*end, late, usage, DONE)), chunked(b"")),
        sends(CLOSING + b"".join([*end, usage, late])),
    ):
        pieces, stream = await answered(play)
        assert list(map(str, pieces)) == ["a"]
        assert (stream.usage, stream.finish_reason) == (KNOWN, FinishReason.EOS)
    assert caplog.text.count("after the end of an answer") == 3


async def test_a_server_that_says_it_is_done_without_a_reason_and_stays() -> None:
    """The connection is closed, and it is not taken for a timeout."""

    async def play(stream: SocketStream) -> None:
        await stream.send(HEAD + chunked(event(chunk({"content": "a"})), DONE))
        await is_closed(stream)

    async def is_closed(stream: SocketStream) -> None:
        while True:
            await stream.receive()

    async with wire(play) as server:
        async with remote_engine(server.url) as engine:
            async with engine.stream_text(CHAT, timeout=60) as stream:
                with pytest.raises(openai.APIConnectionError, match="without a finish_reason"):
                    await stream.read()
        await until(lambda: not server.open_ones)
