"""A remote engine: what it asks, what it makes of answers, and its life. No torch."""

from __future__ import annotations

import json
import math
import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest
from anyio import CancelScope
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st

from anystreamer import Engine, EngineBusy, EngineClosed, FinishReason, Timeouts
from anystreamer.remote import open_remote_engine
from anystreamer.remote._http import httpx
from anystreamer.remote._limits import Limits
from anystreamer.remote._request import RemoteRequest
from anystreamer.remote._response import RemoteRow, ResponseParser
from anystreamer.remote._sse import EventData
from anystreamer.sync import SyncEngine
from anystreamer.testing import ScriptedModel

from ..helpers.flooding_server import flooding_server
from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import until
from ..helpers.serving import edge
from ..helpers.ways_out import (
    WayOut,
    cancelled_from_outside,
    closed,
    each_of,
    stopped,
)
from ..helpers.wire import DONE, HEAD, chunked, ending, event, said, sends, wire

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

CHAT = [{"role": "user", "content": "Hi!"}]
ANSWER = sends(HEAD + chunked(said("one "), said("two"), ending(), DONE, b""))


# -- what is asked

TABLE = (Path(__file__).parents[2] / "docs" / "remote.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", TABLE, re.MULTILINE)
ALWAYS = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(("arguments", "body"), ROWS, ids=[row[0] for row in ROWS])
async def test_arguments_are_sent_as_the_table_says(arguments: str, body: str) -> None:
    kwargs = eval(f"dict({arguments})")
    expected = {"messages": CHAT, **ALWAYS, **json.loads(body)}
    if expected["stream_options"] is None:
        del expected["stream_options"]
    async with wire(ANSWER) as server, remote_engine(server.url, "m") as engine:
        async with engine.stream_text(CHAT, **kwargs) as stream:
            await stream.read()
        assert server.requests[0][0] == "/v1/chat/completions"
        assert server.bodies == [expected]


def test_the_table_is_there() -> None:
    assert len(ROWS) >= 12


async def test_a_text_goes_to_completions() -> None:
    async with wire(ANSWER) as server, remote_engine(f"{server.url}/api/v2/", "m") as engine:
        async with engine.stream_text("hi", logprobs=True, stop="END") as stream:
            await stream.read()
        ((path, headers, body),) = server.requests
    assert path == "/api/v2/completions"
    assert headers["content-type"] == "application/json"
    assert body == {"prompt": "hi", "logprobs": 0, "stop": ["END"], **ALWAYS}


async def test_tools_and_what_was_called_before() -> None:
    function = {"name": "wait", "arguments": {"seconds": 7, "why": "é"}}
    call = {"id": "c1", "type": "function", "function": function}
    told = {**function, "arguments": '{"seconds": 7, "why": "é"}'}
    tools = [{"type": "function", "function": {"name": "wait"}}]
    messages: list[Any] = [
        *CHAT,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    asked = RemoteRequest("m", messages, {"tools": tools}).body
    assert asked["tools"] == tools
    assert asked["messages"][1]["tool_calls"] == [{**call, "function": told}]
    assert asked["messages"][::2] == messages[::2]
    assert function["arguments"] == {"seconds": 7, "why": "é"}  # the caller's own are left alone
    assert RemoteRequest("m", asked["messages"], {}).body["messages"] == asked["messages"]


def test_how_tools_can_be_called_is_sent() -> None:
    wait = {"name": "wait", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": {**wait, "strict": True}}, {**wait, "name": "go"}]
    sent = [tools[0], {"type": "function", "function": tools[1]}]
    named = {"type": "function", "function": {"name": "go"}}
    for choice in (None, "auto", "none", "required", named):
        more = {} if choice is None else {"tool_choice": choice}
        assert RemoteRequest("m", CHAT, {"tools": tools, **more}).body["tools"] == sent
        body = RemoteRequest("m", CHAT, {"tools": tools, "parallel_tool_calls": False, **more}).body
        assert body["parallel_tool_calls"] is False
        assert body.get("tool_choice") == choice
    body = RemoteRequest("m", CHAT, {"tools": tools}).body
    assert body.keys().isdisjoint({"tool_choice", "parallel_tool_calls"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_length": 20}, "max_length .* use max_new_tokens="),
        ({"max_time": 2.0}, "max_time .* use timeout="),
        ({"stop_strings": ["x"]}, "stop_strings .* use stop="),
        ({"eos_token_id": 7}, "eos_token_id .* stop="),
        ({"generation_config": object()}, "generation_config .* one by one"),
        ({"typical_p": 0.5}, r"typical_p .* extra_body=\{'typical_p': \.\.\.\}"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size .* extra_body"),
        ({"num_beams": 2}, "num_beams"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"cancel_within": "layer"}, "cancel_within .* connection"),
        ({"worker_context": open}, "worker_context .*'seed'"),
        ({"skip_special_tokens": False}, "skip_special_tokens .* extra_body"),
        ({"parse_response": {"fields": {}}}, "parse_response .* parse_response=True"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "'enable_thinking'.* extra_body"),
        ({"stop": [""]}, "empty"),
        ({"timeout": -1}, "timeout"),
        ({"max_buffer_size": 0}, "max_buffer_size"),
    ],
)
async def test_what_has_no_counterpart_is_refused_by_name(arguments: Any, words: str) -> None:
    async with wire(ANSWER) as server, remote_engine(server.url) as engine:
        with pytest.raises(ValueError, match=words):
            engine.stream_text(CHAT, **arguments)
        assert not server.requests


@pytest.mark.parametrize(
    ("prompt", "arguments", "error", "words"),
    [
        ({"input_ids": [[1]]}, {}, ValueError, "model inputs cannot be sent"),
        ("", {}, ValueError, "empty"),
        (["a", "b"], {}, ValueError, "batch"),
        (7, {}, TypeError, "prompt must be"),
        ("hi", {"parse_response": True}, ValueError, "parse_response: .* chat"),
        ("hi", {"max_tokens": 7}, TypeError, "max_new_tokens"),
        ("hi", {"streamer": 7}, TypeError, "streamer"),
        ("hi", {"extra_body": {"model": "other"}}, TypeError, "model is given twice"),
        ("hi", {"max_new_tokens": 7, "extra_body": {"max_tokens": 7}}, TypeError, "given twice"),
        ("hi", {"extra_body": {"n": 2}}, ValueError, "'n'.* one answer"),
        (CHAT, {"chat_template_kwargs": {"tools": []}}, TypeError, "pass them as tools="),
        (CHAT, {"tools": [7]}, ValueError, r"tools\[0\] must be"),
        (CHAT, {"tool_choice": "required"}, ValueError, "tool_choice='required' needs tools"),
        ("hi", {"tools": [{"name": "wait"}]}, ValueError, "tools: .* only in a chat"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    prompt: Any, arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        RemoteRequest("m", prompt, arguments)


async def test_what_is_none_is_not_sent() -> None:
    assert RemoteRequest("m", "hi", {"top_k": None, "temperature": None}).body == {
        "prompt": "hi",
        **ALWAYS,
    }


async def test_no_key_is_sent_that_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer secret\nx-gateway: secret")
    async with wire(ANSWER) as server:
        for kwargs in (
            {},
            {"api_key": "mine"},
            {"default_headers": {"Authorization": "Basic mine", "x-team": "a"}},
        ):
            async with remote_engine(server.url, "m", **kwargs) as engine:
                async with engine.stream_text("hi") as stream:
                    await stream.read()
        none, key, own = [headers for _, headers, _ in server.requests]
    assert "authorization" not in none
    assert "secret" not in str(server.requests)
    assert key["authorization"] == "Bearer mine"
    assert (own["authorization"], own["x-team"]) == ("Basic mine", "a")


@pytest.mark.parametrize(
    ("url", "model", "error", "words"),
    [
        ("localhost:8000", "m", ValueError, "http://"),
        ("http://", "m", ValueError, "http://"),
        ("http://a:b:c", "m", ValueError, "must be an http"),
        ("ftp://me:secret@a", "m", ValueError, r"got 'ftp://me:\[hidden\]@a'"),
        ("me:secret@a", "m", ValueError, r"got 'me:\[hidden\]@a'"),
        ("http://me:secret@a:b:c", "m", ValueError, r"me:\[hidden\]@a:b:c"),
        (7, "m", TypeError, "base_url"),
        ("http://localhost", object(), TypeError, "model must be the name"),
    ],
)
def test_what_cannot_be_opened(url: Any, model: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        open_remote_engine(url, model)


# -- what is answered


def delta(**said: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": said}]})


def call(index: int, arguments: str, name: str | None = None, id: str | None = None) -> bytes:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    part = {"index": index, "function": function}
    return delta(tool_calls=[part if id is None else {**part, "id": id, "type": "function"}])


async def answered(*events: bytes, **kwargs: Any) -> tuple[list[Any], Any]:
    """The pieces of an answer to a chat, and its stream. Pieces that come together are joined."""
    play = sends(HEAD + chunked(*events, DONE, b""))
    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text(CHAT, **kwargs) as stream:
            return [piece async for piece in stream], stream


CALLED = {
    "id": "c1",
    "type": "function",
    "function": {"name": "wait", "arguments": {"seconds": 7}},
}
THOUGHT = [
    delta(role="assistant", content=""),
    delta(reasoning_content="Well"),
    delta(reasoning_content=", yes.", content=None),
    delta(content="I "),
    delta(content="wait."),
    call(0, "", "wait", "c1"),
    call(0, '{"sec'),
    call(0, 'onds": 7}'),
    call(1, '{"seconds": ', "wait", "c2"),
]


@pytest.mark.parametrize("parse_response", [False, True])
async def test_reasoning_and_tool_calls(parse_response: bool) -> None:
    rest = [call(1, "8}"), ending("tool_calls")]
    pieces, stream = await answered(*THOUGHT, *rest, parse_response=parse_response)
    second = {**CALLED, "id": "c2", "function": {"name": "wait", "arguments": {"seconds": 8}}}
    assert [(piece.field, piece.value) for piece in pieces] == [
        ("reasoning_content", "Well, yes."),
        ("content", "I wait.") if parse_response else (None, None),
        ("tool_calls", CALLED),
        ("tool_calls", second),
    ]
    assert list(map(str, pieces)) == ["", "I wait.", "", ""]
    assert stream.text == "I wait."
    assert stream.finish_reason is FinishReason.EOS
    assert stream.message == {
        "role": "assistant",
        "reasoning_content": "Well, yes.",
        "content": "I wait.",
        "tool_calls": [CALLED, second],
    }
    sent = RemoteRequest("m", [*CHAT, stream.message], {}).body["messages"][1]
    assert json.loads(sent["tool_calls"][0]["function"]["arguments"]) == {"seconds": 7}


async def test_a_tool_call_that_was_cut_is_not_made() -> None:
    pieces, stream = await answered(*THOUGHT, ending("length"))
    assert [piece.value for piece in pieces if piece.field == "tool_calls"] == [CALLED]
    assert stream.message["tool_calls"] == [CALLED]
    assert stream.finish_reason is FinishReason.LENGTH


async def test_a_tool_call_that_is_malformed_is_delivered_as_text() -> None:
    pieces, stream = await answered(call(0, "{seconds", "wait", "c1"), ending("tool_calls"))
    assert [(piece.field, piece.value) for piece in pieces] == [("tool_calls", "{seconds")]
    assert stream.message == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("later", ["c1", "c3", None])
async def test_tool_calls_that_all_have_the_number_0(later: str | None) -> None:
    """And an id in each part, be it a new one."""
    events = [
        call(0, "", "wait", "c1"),
        call(0, '{"seconds": 7}', id=later),
        call(0, '{"seconds": 8}', "wait", "c2"),
    ]
    pieces, stream = await answered(*events, ending("tool_calls"))
    second = {**CALLED, "id": "c2", "function": {"name": "wait", "arguments": {"seconds": 8}}}
    assert [piece.value for piece in pieces] == [CALLED, second]
    assert stream.message["tool_calls"] == [CALLED, second]


async def test_an_answer_of_tgi_s() -> None:
    """Each event of a completion has a finish reason: an empty one, while there is more to come."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    text = {"object": "text_completion", "id": "", "created": 0, "model": "m"}
    choices = [
        {"finish_reason": reason, "index": 0, "logprobs": None, "text": piece}
        for reason, piece in (("", "one "), ("", "two"), ("eos_token", ""))
    ]
    events = [event({**text, "choices": [choice]}) for choice in choices[:-1]]
    events.append(event({**text, "choices": choices[-1:], "usage": usage}))
    async with wire(sends(HEAD + chunked(*events, DONE, b""))) as server:
        async with remote_engine(server.url) as engine, engine.stream_text("hi") as stream:
            assert await stream.read() == "one two"
    assert stream.finish_reason is FinishReason.EOS
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 2


async def test_other_names_for_reasoning_are_not_delivered_twice() -> None:
    both = delta(reasoning="Hm.", reasoning_content="Hm.")
    pieces, _ = await answered(both, delta(reasoning=" Hm."), delta(refusal="No."), ending())
    assert [(piece.field, piece.value) for piece in pieces] == [
        ("reasoning_content", "Hm. Hm."),
        ("refusal", "No."),
    ]


@pytest.mark.parametrize(
    ("reason", "more", "expected", "stop_string"),
    [
        ("stop", {}, FinishReason.EOS, None),
        ("stop", {"stop_reason": None}, FinishReason.EOS, None),
        ("stop", {"stop_reason": 151645}, FinishReason.EOS, None),  # vLLM, of a token
        ("stop", {"stop_reason": "END"}, FinishReason.STOP_STRING, "END"),
        ("stop", {"matched_stop": "END"}, FinishReason.STOP_STRING, "END"),  # SGLang
        ("stop", {"matched_stop": 2}, FinishReason.EOS, None),
        ("stop_sequence", {}, FinishReason.STOP_STRING, "END"),  # TGI
        ("eos_token", {}, FinishReason.EOS, None),
        ("length", {}, FinishReason.LENGTH, None),
        ("tool_calls", {}, FinishReason.EOS, None),
        ("content_filter", {}, FinishReason.CRITERIA, None),
        ("repetition", {}, FinishReason.CRITERIA, None),  # vLLM
    ],
)
async def test_finish_reasons(
    reason: str, more: Any, expected: FinishReason, stop_string: str | None
) -> None:
    _, stream = await answered(delta(content="one"), ending(reason, **more), stop="END")
    assert (stream.finish_reason, stream.stop_string) == (expected, stop_string)


async def test_a_stop_string_that_the_server_leaves_in_the_text() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    last = event({"choices": [{"finish_reason": "stop", "delta": {}}], "usage": usage})
    pieces, stream = await answered(
        delta(content="one E"), delta(content="ND two"), delta(content="three"), last, stop="END"
    )
    assert "".join(pieces) == "one "
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert stream.stop_string == "END"
    assert stream.usage.completion_tokens == 4


async def at_a_stop_string(stream: Any, outer: CancelScope) -> None:
    assert await stream.read() == "one "


@each_of(at_a_stop_string, cancelled_from_outside, closed, stopped)
async def test_a_server_that_talks_on_without_end_is_left(way: WayOut) -> None:
    first, again = HEAD + chunked(said("one END")), chunked(said(" and on"))
    with flooding_server(first, again) as server:
        async with remote_engine(server.url) as engine:
            with CancelScope() as scope:
                stop = "END" if way is at_a_stop_string else ()
                async with engine.stream_text("hi", stop=stop) as stream:
                    while way is not at_a_stop_string and len(stream.text) < 10_000:
                        await stream.receive()
                    await way(stream, scope)
            await until(lambda: server.connection_closed)
    expected: dict[WayOut, FinishReason] = {
        at_a_stop_string: FinishReason.STOP_STRING,
        stopped: FinishReason.STOPPED,
    }
    assert stream.finish_reason is expected.get(way, FinishReason.CANCELLED)


async def test_logprobs_of_both_kinds() -> None:
    chat = {"content": [{"token": "one", "logprob": -0.5}, {"token": " ", "logprob": -1}]}
    text = {"tokens": ["two"], "token_logprobs": [-2.0], "top_logprobs": None}
    events = [
        event({"choices": [{"delta": {"content": ""}, "logprobs": chat}]}),  # no text as yet
        event({"choices": [{"text": "one two", "logprobs": text}]}),
        ending(),
    ]
    (piece,), stream = await answered(*events, logprobs=True)
    assert piece.logprobs == (-0.5, -1.0, -2.0)
    assert piece.token_ids == ()
    assert stream.token_ids == stream.prompt_token_ids == []
    (piece,), _ = await answered(*events)
    assert piece.logprobs is None


@given(st.binary(max_size=40), st.lists(st.integers(0, 200)))
def test_events_are_the_same_however_they_were_cut(noise: bytes, cuts: list[int]) -> None:
    body = (
        b"data: one\n\n: comment\r\n\r\ndata:two\rdata: 2\r\rid: 7\n\nevent: x\ndata: three\r\n\n"
        + noise
        + b"\n\ndata: four"
    )
    whole = list(EventData(Limits()).feed(body))
    assert whole[:3] == [b"one", b"two\n2", b"three"]
    assert b"four" not in whole
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    events = EventData(Limits())
    pieces = [body[start:end] for start, end in pairwise(places)]
    assert [data for piece in pieces for data in events.feed(piece)] == whole


@given(st.text(max_size=30), st.lists(st.integers(0, 60)), st.sampled_from([[], ["ab"], ["\n"]]))
def test_any_text_in_any_pieces(text: str, cuts: list[int], stop: list[str]) -> None:
    """Also where a piece ends inside of a character, as JSON can have it."""
    units = text.encode("utf-16-le", "replace")
    places = [0, *sorted(2 * cut % (len(units) + 2) for cut in cuts), len(units)]
    answer = ResponseParser(RemoteRow(), stop, Limits(), logprobs=False, names_content=False)
    chunks: list[str] = []
    for start, end in pairwise(places):
        piece = units[start:end].decode("utf-16-le", "surrogatepass")
        data = json.dumps({"choices": [{"text": piece}]}).encode()
        chunks += answer.feed(data, 0.0)
        for chunk in chunks:
            chunk.encode()
    chunks += answer.finish(0.0)
    expected = units.decode("utf-16-le")
    assert "".join(chunks) == (expected.split(stop[0])[0] if stop else expected)
    assert all(chunks)


# -- its life


async def test_what_it_tells_of_itself() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    go_on: Any = None

    async def slowly(stream: SocketStream) -> None:
        await stream.send(HEAD + chunked(said("one ")))
        await until(lambda: go_on)
        await stream.send(chunked(said("two"), ending(), usage, DONE, b""))

    async with wire(slowly) as server, remote_engine(server.url) as engine:
        assert isinstance(engine, Engine)
        assert repr(engine) == "<anystreamer.Engine open, 0 running, 0 waiting>"
        async with engine.stream_text("hi") as stream:
            assert stream.queue_position is None
            assert await stream.receive() == "one "
            now = engine.statistics()
            assert (now.running, now.waiting, now.computed_tokens) == (1, 0, 0)
            assert now.cache_used is None
            go_on = True
            assert await stream.read() == "two"
        await until(lambda: engine.statistics().total.count == 1)
        now = engine.statistics()
        assert (now.running, now.waiting, now.computed_tokens) == (0, 0, 5)
        assert 0 < now.tokens_per_second < math.inf
        assert now.queued.count == now.first_token.count == 1
        assert now.between_tokens.count >= 1
        assert stream.timing is not None
        assert stream.output is None
    assert repr(engine) == "<anystreamer.Engine closed, 0 running, 0 waiting>"
    with pytest.raises(EngineClosed):
        async with engine.stream_text("hi"):
            pass


async def test_a_client_of_one_s_own_is_closed_with_the_engine() -> None:
    client = httpx.AsyncClient(trust_env=False)
    async with wire(ANSWER) as server:
        owner = open_remote_engine(server.url, "m", http_client=client)
        async with owner as engine, engine.stream_text("hi") as stream:
            assert await stream.read() == "one two"
        assert client.is_closed
        with pytest.raises(RuntimeError, match=r"open_remote_engine\(\) has been opened before"):
            async with owner:
                pass


async def test_the_body_s_error_comes_out_bare() -> None:
    error = ValueError("mine")
    async with wire(ANSWER) as server:
        with pytest.raises(ValueError, match="mine") as raised:
            async with remote_engine(server.url):
                raise error
    assert raised.value is error


async def test_callers_with_no_event_loop_use_it_too() -> None:
    async with wire(ANSWER) as server, remote_engine(server.url) as engine:

        def elsewhere() -> str:
            with SyncEngine(engine).stream_text("hi") as stream:
                return str(stream.read())

        assert await anyio.to_thread.run_sync(elsewhere) == "one two"


def test_an_engine_that_is_busy_can_be_sent_to_another_process() -> None:
    busy = pickle.loads(pickle.dumps(EngineBusy(None, 1.5)))
    assert (busy.waiting, busy.retry_after) == (None, 1.5)
    assert str(busy) == "the engine is busy: try again later"


async def test_who_asks_through_a_server_of_ours_is_told_which_parameter_was_wrong() -> None:
    async with edge(ScriptedModel(["a"]), max_tokens_limit=5) as (client, _):
        async with remote_engine(str(client.base_url)) as engine:
            with pytest.raises(openai.BadRequestError, match="max_tokens must be at most 5"):
                async with engine.stream_text("hi", max_new_tokens=6, timeout=Timeouts(total=9)):
                    pass
            with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
                async with engine.stream_text("hi", extra_body={"suffix": "x"}):
                    pass
