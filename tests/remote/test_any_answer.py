"""Whatever a server sends, the client raises what docs/remote.md promises, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import anyio
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anystreamer import EngineBusy, FinishReason, GenerationTimeout, TextStream
from anystreamer.remote import open_remote_engine
from anystreamer.remote._http import httpx
from anystreamer.remote._limits import LimitExceeded, Limits
from anystreamer.remote._response import InvalidEvent, RemoteRow, ResponseParser
from anystreamer.remote._shapes import ServerError
from anystreamer.remote._sse import EventData

from ..helpers.wire import DONE, ending, event, said

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

CHAT = [{"role": "user", "content": "hi"}]

# -- events: those of OpenAI's API, and the same with any value anywhere

WORDS = st.text(max_size=8) | st.sampled_from(['{"a": 1}', "{", '"{}"', "null", "END", "\ud83d"])
NUMBERS = (
    st.integers(-3, 3)
    | st.floats(width=16)
    | st.sampled_from([10**400, -(10**400), 2**63, float("inf"), float("nan")])
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields)


def listed(entry: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(entry, max_size=3)


FUNCTION = record(name=WORDS, arguments=WORDS)
CALL = record(
    index=st.integers(0, 2),
    id=WORDS,
    type=st.just("function"),
    function=FUNCTION,
    custom=record(name=WORDS, input=WORDS),
    signature=WORDS,
)
PART = record(type=st.sampled_from(["text", "thinking", "refusal"]), text=WORDS, thinking=WORDS)
DELTA = record(
    role=st.just("assistant"),
    content=WORDS | listed(PART),
    reasoning_content=WORDS,
    refusal=WORDS,
    tool_calls=listed(CALL),
    function_call=FUNCTION,
)
TOKEN = record(token=WORDS, logprob=NUMBERS, bytes=listed(st.integers(0, 255)))
LOGPROBS = record(content=listed(TOKEN), refusal=listed(TOKEN), token_logprobs=listed(NUMBERS))
REASONS = st.none() | st.sampled_from(["stop", "length", "tool_calls", "abort", "other"])
CHOICE = record(
    index=st.integers(0, 1),
    delta=DELTA,
    message=DELTA,
    text=WORDS,
    finish_reason=REASONS,
    stop_reason=WORDS,
    logprobs=LOGPROBS,
    usage=ANYTHING,
    error=ANYTHING,
)
USAGE = record(prompt_tokens=NUMBERS, completion_tokens=NUMBERS, total_tokens=NUMBERS)
ERROR = record(message=WORDS, type=st.just("timeout_error"), code=st.just("total"), param=WORDS)
EVENT = record(choices=listed(CHOICE), usage=USAGE, error=ERROR, object=WORDS, detail=WORDS)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a value, with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from places(value[key])


@st.composite
def any_events(draw: st.DrawFn) -> list[Any]:
    """Events of the API, where some values are replaced by any others."""
    events: list[Any] = draw(st.lists(EVENT, max_size=4))
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(events))
        if found:
            container, key = found[draw(st.integers(0, len(found) - 1))]
            container[key] = draw(ANYTHING)
    return events


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


CALLED = {"name": "f", "arguments": "[" * 100_000}


@given(any_events())
@example([{"choices": [{"delta": {"tool_calls": [{"function": CALLED}]}}]}])
@example([{"choices": [{"delta": {"content": deep(400)}}]}])
@example([{"error": deep(400)}])
@example([{"choices": [{"logprobs": {"token_logprobs": [10**400]}}]}])
def test_any_events(events: list[Any]) -> None:
    parser = ResponseParser(RemoteRow(), ["END"], Limits(), logprobs=True, names_content=True)
    chunks: list[Any] = []
    for each in events:
        try:
            chunks += parser.feed(json.dumps(each).encode(), 0.0)
        except (InvalidEvent, LimitExceeded, ServerError) as exc:
            str(exc)
            break
    for chunk in [*chunks, *parser.finish(0.0)]:
        chunk.encode()
        assert chunk.field is not None
        if isinstance(chunk.value, str):
            chunk.value.encode()
        assert chunk.logprobs is not None
        assert all(isinstance(each, float) for each in chunk.logprobs)
    message = parser.message
    assert message["role"] == "assistant"
    for call in message.get("tool_calls", ()):
        (kind,) = {"function", "custom"} & call.keys()
        assert isinstance(call[kind]["name"], str)
        assert isinstance(call.get("id", ""), str)


# -- bytes, through the client: parts of answers that are right, and any bytes between them

PIECES = st.lists(
    st.binary(max_size=20)
    | st.sampled_from(
        [
            *(said("one "), said("two"), ending(), DONE, b"data: ", b"error: ", b"data: [", b"\n"),
            *(b"\r", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xff", b"\x00", b": comment\n"),
            event({"usage": {"prompt_tokens": 10**400, "completion_tokens": 1e999}}),
            event({"error": {"type": "timeout_error", "code": "total"}}),
            *(b"data: %s\n\n" % each for each in (b"9" * 5000, b"[" * 5000, b"nul", b"7")),
        ]
    ),
    max_size=8,
)
PUBLIC = (openai.APIError, GenerationTimeout, EngineBusy)


def deltas(reads: list[bytes]) -> list[Any]:
    """All that comes of an answer: its chunks, its errors, and how it ended."""
    limits = Limits(max_event_size=4096)
    events, row = EventData(limits), RemoteRow()
    parser = ResponseParser(row, ["END"], limits, logprobs=True, names_content=True)
    found: list[Any] = []
    try:
        for read in reads:
            for data in events.feed(read):
                try:
                    for chunk in parser.feed(data, 0.0):
                        found.append((str(chunk), chunk.field, chunk.value, chunk.logprobs))
                except (InvalidEvent, ServerError) as exc:
                    found.append(str(exc))
    except LimitExceeded as exc:
        return [*found, str(exc)]
    parser.end_of_body()
    return [*found, *parser.finish(0.0), parser.ended, parser.message, row.server_usage]


@given(PIECES, st.lists(st.integers(0, 10_000), max_size=20))
@example([said("é🙂"), b"event: error\r\ndata: 7\r\n\r\n", ending()], list(range(300)))
def test_an_answer_in_any_reads_has_the_same_deltas(pieces: list[bytes], cuts: list[int]) -> None:
    body = b"".join(pieces)
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    whole = repr(deltas([body]))  # repr: NaN is not equal to itself
    assert repr(deltas([body[start:end] for start, end in pairwise(places)])) == whole
    assert repr(deltas([body[i : i + 1] for i in range(len(body))])) == whole


class Body(httpx.AsyncByteStream):
    """A body, in parts, and an error of the connection in the end."""

    def __init__(self, parts: list[bytes], error: Exception | None) -> None:
        self._parts = parts
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        if self._error is not None:
            raise self._error


def answer(loop: Any, status: int, headers: Any, body: Body) -> tuple[Any, TextStream | None]:
    """The client's error for a response, None if it has none, and its stream."""
    backend, options = loop

    def respond(request: Any) -> Any:
        return httpx.Response(status, headers=headers, stream=body, request=request)

    async def main() -> tuple[Any, TextStream | None]:
        stream = None
        client = httpx.AsyncClient(transport=httpx.MockTransport(respond))
        async with open_remote_engine(
            "http://server", "m", http_client=client, max_retries=0
        ) as engine:
            try:
                async with engine.stream_text(CHAT, logprobs=True) as stream:
                    await stream.read()
            except Exception as exc:
                return exc, stream
            finally:
                engine.statistics()
        return None, stream

    return anyio.run(main, backend=backend, backend_options=options)


EVENTS = {"content-type": "text/event-stream"}
ERRORS = [None, httpx.ReadError("lost"), httpx.ReadTimeout("late"), anyio.EndOfStream(), OSError()]


@given(PIECES, st.sampled_from(ERRORS))
def test_any_bytes(anyio_backend: Any, pieces: list[bytes], broken: Exception | None) -> None:
    error, stream = answer(anyio_backend, 200, EVENTS, Body(pieces, broken))
    assert stream is not None
    stream.text.encode()
    if error is None:
        assert stream.finish_reason is FinishReason.EOS
    else:
        assert isinstance(error, PUBLIC)
        assert stream.finish_reason in (FinishReason.ERROR, FinishReason.TIMEOUT)


@given(
    st.sampled_from([200, 204, 300, 307, 400, 401, 404, 409, 422, 429, 500, 503, 599]),
    st.dictionaries(
        st.sampled_from(["content-type", "content-encoding", "location", "retry-after", "x"]),
        st.sampled_from(["application/json", "text/plain; charset=zlib", "gzip", "1e999", "//["])
        | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10),
    ),
    PIECES | ERROR.map(lambda error: [json.dumps({"error": error}).encode()]),
    st.sampled_from(ERRORS),
)
def test_any_refusal(
    anyio_backend: Any, status: int, headers: Any, pieces: list[bytes], broken: Exception | None
) -> None:
    error, stream = answer(anyio_backend, status, headers, Body(pieces, broken))
    assert stream is None
    assert isinstance(error, PUBLIC)
