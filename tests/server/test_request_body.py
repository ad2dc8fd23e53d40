"""Bodies: the first error is enough, everything has a bound, large ones leave the loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, model_validator

from anystreamer._text.stop_strings import _Automaton
from anystreamer.server import _bounded_json
from anystreamer.server._bounded_json import MAX_CONTAINERS, MAX_DEPTH, from_bounded_json
from anystreamer.server._errors import APIError
from anystreamer.server._message_models import MAX_CALLS, MAX_PARTS
from anystreamer.server._request_body import INLINE_BYTES, BodyParser, parsed
from anystreamer.server._request_models import (
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    ChatRequest,
    CompletionRequest,
)
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.serving import edge, error_of
from .test_server import CHAT, TEXT

USER = {"role": "user", "content": "Hi"}
PART = {"type": "text", "text": "Hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
MANY = 10_000


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def chat(**changed: Any) -> dict[str, Any]:
    return {"messages": [USER], **changed}


def refusal(body: dict[str, Any], kind: type[Any] = ChatRequest) -> APIError:
    with pytest.raises(APIError) as raised:
        parsed(kind, json.dumps(body).encode())
    return raised.value


def param_of(error: APIError) -> Any:
    return error.object["error"]["param"]


# -- the first error is enough


WRONG: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "messages": (lambda each: {"messages": [each] * 2000}, "messages[0]"),
    "parts": (
        lambda each: {"messages": [{"role": "user", "content": [each] * 1000}]},
        "messages[0].content[0]",
    ),
    "tool calls": (
        lambda each: {"messages": [{"role": "assistant", "tool_calls": [each] * 128}]},
        "messages[0].tool_calls[0]",
    ),
    "tools": (lambda each: chat(tools=[each] * 128), "tools[0]"),
    "stop": (lambda each: chat(stop=[each] * 16), "stop[0]"),
}


@pytest.mark.parametrize("place", WRONG)
@pytest.mark.parametrize("item", [{}, 0, None, [], {"x": 1}, {"a": 1, "b": 2}])
def test_pydantic_stops_at_the_first_wrong_item(place: str, item: Any) -> None:
    body, name = WRONG[place]
    error = refusal(body(item))
    assert param_of(error).startswith(name)
    assert isinstance(error.__cause__, ValidationError)
    assert error.__cause__.error_count() <= 12  # of one item: each of its fields has one at most


def test_it_stops_at_the_first_wrong_prompt() -> None:
    error = refusal({"prompt": [{}] * 128}, CompletionRequest)
    assert param_of(error) == "prompt[0]"
    assert isinstance(error.__cause__, ValidationError)
    assert error.__cause__.error_count() <= 4  # one for each shape of a prompt


MANY_FIELDS = {f"field{number}": 0 for number in range(MANY)}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"messages": [USER], **MANY_FIELDS}, "field0"),
        ({"messages": [{**USER, **MANY_FIELDS}]}, "messages[0].field0"),
        ({"messages": [{"role": "user", "content": [{**PART, **MANY_FIELDS}]}]}, "field0"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, **MANY_FIELDS}]}]},
            "messages[0].tool_calls[0].field0",
        ),
        (chat(tools=[{**TOOL, **MANY_FIELDS}]), "tools[0].field0"),
        (chat(stream=True, stream_options=MANY_FIELDS), "stream_options.field0"),
    ],
)
def test_it_stops_at_the_first_unknown_field(body: dict[str, Any], name: str) -> None:
    error = refusal(body)
    assert param_of(error).endswith(name)
    assert error.object["error"]["code"] == "unknown_parameter"
    assert isinstance(error.__cause__, ValidationError)
    assert error.__cause__.error_count() <= 3


# -- bounds


BOUNDS: dict[str, tuple[Callable[[int], dict[str, Any]], int, str | None]] = {
    "messages": (lambda n: {"messages": [USER] * n}, MAX_MESSAGES, "messages"),
    "parts": (
        lambda n: {"messages": [{"role": "user", "content": [PART] * n}]},
        MAX_PARTS,
        "messages[0].content",
    ),
    "tool calls": (
        lambda n: {"messages": [{"role": "assistant", "tool_calls": [CALL] * n}]},
        MAX_CALLS,
        "messages[0].tool_calls",
    ),
    "tools": (lambda n: chat(tools=[TOOL] * n), 128, "tools"),
    "stop strings": (lambda n: chat(stop=["x"] * n), 16, "stop"),
    "characters of a stop string": (lambda n: chat(stop="x" * n), MAX_STOP_CHARACTERS, "stop"),
    "characters of stop strings": (
        lambda n: chat(stop=["x" * (n // 2), "y" * (n - n // 2)]),
        MAX_STOP_CHARACTERS,
        "stop",
    ),
    # The body, its lists, the tool and its function come before the schema.
    "levels of a schema": (
        lambda n: chat(
            tools=[{"type": "function", "function": {"name": "f", "parameters": nested(n - 4)}}]
        ),
        MAX_DEPTH,
        None,
    ),
    "objects of a schema": (
        lambda n: {
            "messages": [USER],
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"a": [[]] * (n - 8)}}}
            ],
        },
        MAX_CONTAINERS,
        None,
    ),
    "levels of arguments": (
        lambda n: {"messages": [{"role": "assistant", "tool_calls": [called(nested(n))]}]},
        MAX_DEPTH,
        "messages[0].tool_calls[0].function.arguments",
    ),
    "objects of arguments": (
        lambda n: {
            "messages": [{"role": "assistant", "tool_calls": [called({"a": [[]] * (n - 2)})]}]
        },
        MAX_CONTAINERS,
        "messages[0].tool_calls[0].function.arguments",
    ),
}


def called(arguments: Any) -> dict[str, Any]:
    return {**CALL, "function": {"name": "f", "arguments": json.dumps(arguments)}}


@pytest.mark.parametrize("name", BOUNDS)
def test_all_that_can_be_many_has_a_bound(name: str) -> None:
    body, bound, param = BOUNDS[name]
    parsed(ChatRequest, json.dumps(body(bound)).encode())
    error = refusal(body(bound + 1))
    assert error.status == 400
    assert param_of(error) == param
    assert str(bound) in str(error)


values = st.recursive(
    st.none() | st.integers() | st.text('"\\[]{}a,:', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('"\\[]{}a', max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def containers_of(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + sum(map(containers_of, value.values() if isinstance(value, dict) else value))


@given(values, st.integers(0, 6), st.integers(0, 12))
def test_brackets_are_counted_as_a_parser_counts_them(
    value: Any, most_levels: int, most_containers: int
) -> None:
    """Those in strings are text."""
    fits = depth_of(value) <= most_levels and containers_of(value) <= most_containers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_bounded_json, "MAX_DEPTH", most_levels)
        patch.setattr(_bounded_json, "MAX_CONTAINERS", most_containers)
        text = json.dumps(value)
        quick = text.count("{") + text.count("[") <= most_levels
        if fits or quick:
            assert from_bounded_json(text) == value
        else:
            with pytest.raises(ValueError, match=r"more than|deeper than"):
                from_bounded_json(text)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\"', b"\\", b'"\\', b'["', b'{"a":"'])
def test_counting_takes_one_pass(unit: bytes) -> None:
    """Also in what is not JSON: half a megabyte would take minutes otherwise."""
    for text in (unit * (500_000 // len(unit)), b"[" * 65 + unit * (500_000 // len(unit))):
        with pytest.raises(ValueError, match=r"deeper|line \d+ column"):
            from_bounded_json(text)


# -- where it is done


async def test_a_large_body_is_parsed_in_another_thread() -> None:
    threads = []

    class Watched(ChatRequest):
        @model_validator(mode="after")
        def _note(self) -> Watched:
            threads.append(threading.get_ident())
            return self

    parser = BodyParser()
    for size in (10, INLINE_BYTES):
        body = json.dumps({"messages": [{"role": "user", "content": "x" * size}]}).encode()
        request = await parser.parse(Watched, body)
        assert request.prompts[0][1] == [{"role": "user", "content": "x" * size}]
        assert vars(request)["prompts"] is request.prompts  # made there, too
    here = threading.get_ident()
    assert threads[0] == here
    assert threads[1] != here
    wrong = json.dumps({"messages": [{"role": "user", "content": ["x" * INLINE_BYTES]}]}).encode()
    with pytest.raises(APIError, match=r"messages\[0\]"):
        await parser.parse(Watched, wrong)


async def test_stop_strings_are_built_once_for_all_choices_and_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []
    build = _Automaton.__init__

    def watched(self: _Automaton, strings: Any) -> None:
        if strings:
            built.append(threading.get_ident())
        build(self, strings)

    monkeypatch.setattr(_Automaton, "__init__", watched)
    async with edge(ScriptedModel(["one ", "ST", "OP"])) as (client, _):
        body = {"prompt": ["Hi", "Ho"], "n": 3, "stop": ["STOP", "x" * 4000]}
        choices = (await client.post(TEXT, json=body)).json()["choices"]
    assert [choice["text"] for choice in choices] == ["one "] * 6
    assert len(built) == 1
    assert built[0] != threading.get_ident()


LARGE: dict[str, bytes] = {
    "messages": b'{"messages": [' + b"{}," * 300_000 + b"{}]}",
    "numbers": b'{"messages": [' + b"0," * 450_000 + b"0]}",
    "parts": b'{"messages": [{"role": "user", "content": [' + b"{}," * 300_000 + b"{}]}]}",
    "fields": json.dumps({f"{number}": 0 for number in range(80_000)}).encode(),
    "levels": b'{"messages": ' + b"[" * 900_000,
    "stop": json.dumps({"messages": [USER], "stop": "ab" * 450_000}).encode(),
    "arguments": json.dumps(
        {"messages": [{"role": "assistant", "tool_calls": [called([[]] * 100_000)]}]}
    ).encode(),
}


async def test_large_bodies_are_refused_and_others_are_served() -> None:
    gate = Gate()
    async with edge(ScriptedModel(["a", gate, "b"])) as (client, engine):
        gate.open()
        headers = {"content-type": "application/json"}
        for body in LARGE.values():
            assert len(body) < 2**20
            response = await client.post(CHAT, content=body, headers=headers)
            assert response.status_code == 400
            error_of(response)
        assert (await client.post(CHAT, json=chat())).status_code == 200
        assert engine.statistics().running == 0
