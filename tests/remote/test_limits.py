"""A server cannot make the client grow, wait without end, stall, or send its key elsewhere."""

from __future__ import annotations

import base64
import gzip
import logging
import math
import traceback
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from anyio.abc import SocketStream

from anystreamer import FinishReason, GenerationTimeout, Timeouts
from anystreamer.remote import _http, open_remote_engine
from anystreamer.remote._http import httpx
from anystreamer.remote._limits import MAX_CALLS, MAX_ITEMS, LimitExceeded, Limits
from anystreamer.remote._response import RemoteRow, ResponseParser
from anystreamer.remote._sse import EventData
from anystreamer.remote._tool_calls import ToolCalls

from ..helpers.flooding_server import flooding_server
from ..helpers.hostile_answers import ANSWERS, HostileAnswer, meet
from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import PATIENCE
from ..helpers.wire import CLOSING, DONE, HEAD, Play, chunked, ending, event, said, sends, wire

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

ANSWER = sends(HEAD + chunked(said("one "), said("two"), ending(), DONE, b""))

# The tests' own limits, so that they are reached soon. The client grows by about that, and what the
# connection and the loop keep: a flood is hundreds of megabytes.
SMALL = {"max_event_size": 2**18, "max_answer_size": 2**18}
MOST = 8 * 2**20


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def read(url: str, **kwargs: Any) -> str:
    async with remote_engine(url, **kwargs) as engine, engine.stream_text("hi") as stream:
        return str(await stream.read())


# -- answers without end


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.usefixtures("traced")
async def test_an_answer_without_end_is_an_error_and_the_client_does_not_grow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "ERROR_TIMEOUT", 0.5)
    answer = ANSWERS[name]
    async with wire(ANSWER) as server:  # the first connection of a process loads 130 modules
        assert await read(server.url) == "one two"
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    outcome = await meet(answer, None, **SMALL)
    _, peak = tracemalloc.get_traced_memory()
    assert isinstance(outcome.error, answer.error)
    assert answer.words in str(outcome.error)
    assert peak - before < MOST


@pytest.mark.parametrize("phase", ["queued", "total"])
async def test_a_deadline_holds_while_an_error_comes_slowly(phase: str) -> None:
    answer = ANSWERS["an error's body, slowly"]
    outcome = await meet(answer, Timeouts(**{phase: 0.2}))
    assert isinstance(outcome.error, GenerationTimeout)
    assert outcome.error.phase == phase


@pytest.mark.parametrize("again", [b":", b"x", b"data: {}\n\n", b"\n"])
async def test_a_deadline_holds_while_an_answer_comes_slowly(again: bytes) -> None:
    outcome = await meet(
        HostileAnswer(HEAD, chunked(again), pause=0.001), Timeouts(first_token=0.2)
    )
    assert isinstance(outcome.error, GenerationTimeout)
    assert outcome.error.phase == "first_token"


async def test_a_deadline_holds_in_a_flood_without_text() -> None:
    outcome = await meet(HostileAnswer(HEAD, chunked(b"data: {}\n\n" * 6000)), Timeouts(total=0.2))
    assert isinstance(outcome.error, GenerationTimeout)


async def test_a_flood_after_the_end_does_not_change_an_answer() -> None:
    """Even where it breaks a limit."""
    first = HEAD + chunked(said("one two"), ending())
    for again in (chunked(b"x" * 65536), chunked(said("x"))):
        with flooding_server(first, again) as server, anyio.fail_after(PATIENCE):
            async with remote_engine(server.url) as engine:
                async with engine.stream_text("hi") as stream:
                    await stream.receive()
                    stream.stop()
            assert stream.finish_reason in (FinishReason.EOS, FinishReason.STOPPED)
    with flooding_server(first, chunked(b"x" * 65536)) as server, anyio.fail_after(PATIENCE):
        assert await read(server.url) == "one two"


@pytest.mark.slow
async def test_hostile_answers_do_not_disturb_others() -> None:
    """They share the loop, but no connection."""
    names = ["a line", "an event", "tool calls", "gzip", "an error's body"]
    texts: list[str] = []

    async def hostile(name: str) -> None:
        outcome = await meet(ANSWERS[name], None, **SMALL)
        assert isinstance(outcome.error, ANSWERS[name].error)

    async with wire(ANSWER) as server, remote_engine(server.url) as engine:

        async def well_behaved() -> None:
            for _ in range(10):
                async with engine.stream_text("hi") as stream:
                    texts.append(await stream.read())
                assert stream.finish_reason is FinishReason.EOS

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(hostile, name)
            for _ in range(5):
                tasks.start_soon(well_behaved)
    assert texts == ["one two"] * 50


# -- the limits, to the byte


def parsed(limits: Limits, *events: Any, logprobs: bool = False) -> str:
    parser = ResponseParser(RemoteRow(), [], limits, logprobs=logprobs, names_content=False)
    text = ""
    for data in EventData(limits).feed(b"".join(map(event, events))):
        for chunk in parser.feed(data, 0.0):
            text += chunk
    return text


def test_an_event_can_have_as_many_bytes_as_the_limit() -> None:
    data = event({"choices": [{"text": "x" * 100}]})
    size = len(data) - 1  # without its empty line
    for cut in range(len(data)):
        events = EventData(Limits(max_event_size=size))
        assert len([*events.feed(data[:cut]), *events.feed(data[cut:])]) == 1
        events = EventData(Limits(max_event_size=size - 1))
        with pytest.raises(LimitExceeded, match=f"max_event_size={size - 1}"):
            list(events.feed(data[:cut]))
            list(events.feed(data[cut:]))


def test_the_lines_of_an_event_count_together_and_comments_do_not() -> None:
    events = EventData(Limits(max_event_size=22))
    assert list(events.feed(b": comment\ndata: 1234\n" * 2 + b"\n")) == [b"1234\n1234"]
    assert list(events.feed(b": comment\n" * 100)) == []
    with pytest.raises(LimitExceeded):
        list(events.feed(b"data:\n" * 4))


def test_text_before_the_limit_is_delivered() -> None:
    limits = Limits(max_answer_size=3 * (128 + 4))
    assert parsed(limits, *[{"choices": [{"text": "four"}]}] * 3) == "four" * 3
    parser = ResponseParser(RemoteRow(), [], limits, logprobs=False, names_content=False)
    text = ""
    with pytest.raises(LimitExceeded, match="max_answer_size=396"):
        for _ in range(4):
            for chunk in parser.feed(b'{"choices": [{"text": "four"}]}', 0.0):
                text += chunk
    assert text == "four" * 3


@pytest.mark.parametrize(
    "data",
    [
        {"choices": [{}] * (MAX_ITEMS + 1)},
        {"choices": [{"text": "a"}] * 17},
        {"choices": [{"text": [["a"]] * (MAX_ITEMS + 1)}]},
        {"choices": [{"text": [["a"] * MAX_ITEMS, "a"]}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0}] * (MAX_ITEMS + 1)}}]},
        {"choices": [], "more": [0] * 65_540},
    ],
)
def test_an_event_has_a_bounded_number_of_values(data: Any) -> None:
    with pytest.raises(LimitExceeded):
        parsed(Limits(), data)


def test_a_whole_answer_in_one_event_is_within_the_limits() -> None:
    tokens = [{"token": " one,", "logprob": -0.5, "bytes": [32, 111, 110, 44]}] * 2000
    message = {"content": " one," * 4000, "reasoning_content": "é " * 100_000}
    data = {"choices": [{"message": message, "logprobs": {"content": tokens}}]}
    assert parsed(Limits(), data, logprobs=True) == " one," * 4000


def test_tool_calls_have_limits() -> None:
    calls = ToolCalls(Limits())
    for number in range(MAX_CALLS):
        calls.feed({"index": number, "function": {"name": "f", "arguments": "{}"}})
    with pytest.raises(LimitExceeded, match="128 tool calls"):
        calls.feed({"index": MAX_CALLS, "function": {"name": "f"}})
    assert len(calls.finish(is_cut=False)) == MAX_CALLS
    for delta in (
        {"function": {"arguments": "x" * 10_000}},
        {"function": {"arguments": ", " * 100}},
        {"signature": "x" * 10_000},
    ):
        calls = ToolCalls(Limits(max_event_size=1000))
        with pytest.raises(LimitExceeded, match="max_event_size=1000"):
            calls.feed({"index": 0, **delta})


def test_arguments_in_small_pieces_take_time_in_proportion_to_their_length() -> None:
    """Also from a server that repeats the name. 100,000 characters take minutes otherwise."""
    calls = ToolCalls(Limits())
    for piece in ('{"a": "', *["}"] * 100_000, '"}'):
        calls.feed({"index": 0, "id": "c", "function": {"name": "f", "arguments": piece}})
    (call,) = calls.finish(is_cut=True)
    assert isinstance(call, dict)
    assert call["function"]["arguments"] == {"a": "}" * 100_000}


async def test_the_limits_are_options() -> None:
    long = sends(CLOSING + said("x" * 2_000_000) + ending())
    async with wire(long) as server:
        with pytest.raises(openai.APIError, match="pass a larger max_event_size"):
            await read(server.url)
        text = await read(server.url, max_event_size=math.inf)
        assert len(text) == 2_000_000
        with pytest.raises(openai.APIError, match="pass a larger max_answer_size"):
            await read(server.url, max_event_size=3_000_000, max_answer_size=1_000_000)


@pytest.mark.parametrize("name", ["max_event_size", "max_answer_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1", None])
def test_a_limit_is_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        open_remote_engine("http://localhost", "m", **{name: value})


# -- compression


@pytest.mark.parametrize("headers", [{}, {"Accept-Encoding": "gzip"}])
async def test_only_answers_that_are_not_compressed_are_accepted(headers: dict[str, str]) -> None:
    async with wire(ANSWER) as server:
        assert await read(server.url, default_headers=headers) == "one two"
    assert server.requests[0][1]["accept-encoding"] == "identity"


BODY = said("one two") + ending()
ENCODINGS = {
    "gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "br": BODY,
    "zstd": BODY,
    "gzip, identity": gzip.compress(BODY),
    "unknown": BODY,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_answer_is_an_error_that_says_so(encoding: str) -> None:
    coding = b"content-encoding: %s\r\n\r\n" % encoding.encode()
    body = ENCODINGS[encoding]
    for status, kind in ((b"200 OK", openai.APIResponseValidationError), (b"400 No", BAD)):
        head = b"HTTP/1.1 %s\r\ncontent-type: text/event-stream\r\n%s" % (status, coding)
        async with wire(sends(head + body)) as server:
            with pytest.raises(kind, match=f"content-encoding.* {encoding}"):
                await read(server.url)


BAD = openai.BadRequestError


async def test_identity_is_no_compression() -> None:
    head = CLOSING.replace(b"\r\n", b"\r\nContent-Encoding: Identity\r\n", 1)
    async with wire(sends(head + BODY)) as server:
        assert await read(server.url) == "one two"


# -- other addresses


def redirect(status: int, location: bytes) -> Play:
    return sends(
        b"HTTP/1.1 %d Elsewhere\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % (status, location)
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("follows", [False, True])
async def test_a_redirect_is_not_followed_and_the_error_has_both_addresses(
    status: int, follows: bool
) -> None:
    """The other server would get the prompt, and a key in a header of the caller's."""
    async with wire(ANSWER) as other:
        location = f"{other.url}/v1/completions"
        async with wire(redirect(status, location.encode())) as server:
            client = httpx.AsyncClient(trust_env=False, follow_redirects=follows)
            with pytest.raises(openai.APIStatusError) as raised:
                await read(
                    server.url,
                    http_client=client,
                    max_retries=2,
                    default_headers={"x-api-key": "secret"},
                )
            assert len(server.requests) == 1
    assert raised.value.status_code == status
    assert f"{server.url}/v1/completions redirects to {location}" in str(raised.value)
    assert "base_url" in str(raised.value)
    assert not other.connections


@pytest.mark.parametrize(
    "location", [b"http://[", b"//\xff", b"x" * 10_000, b"http://a:b:c/", b"?"]
)
async def test_a_redirect_to_no_address_is_the_same_error(location: bytes) -> None:
    async with wire(redirect(307, location)) as server:
        with pytest.raises(openai.APIStatusError, match="redirects to") as raised:
            await read(server.url)
    assert len(str(raised.value)) < 1000


async def test_no_cookies_are_kept() -> None:
    """A server could make each request larger than the one before."""
    head = HEAD.replace(b"\r\n", b"\r\nset-cookie: a=b; path=/\r\n", 1)

    async def play(stream: SocketStream) -> None:
        for _ in range(2):
            await stream.send(head + chunked(BODY, DONE, b""))
            await server.request(stream)

    async with wire(play) as server, open_remote_engine(server.url, "m") as engine:
        for _ in range(2):
            async with engine.stream_text("hi") as stream:
                await stream.read()
    assert all("cookie" not in headers for _, headers, _ in server.requests)


async def test_no_error_shows_a_password_or_a_key_of_the_address() -> None:
    plays = [
        redirect(307, b"http://elsewhere"),
        sends(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n"),
        sends(),
        sends(CLOSING),
    ]
    for play in plays:
        async with wire(play) as server:
            url = server.url.replace("http://", "http://me:secret@")
            with pytest.raises(openai.APIError) as raised:
                await read(url, default_query={"key": "secret"})
        assert "secret" not in str(raised.value)


KEY, TEAM = "sk-s3cr3t", "a b s3cr3t"
PLACES: dict[str, bytes] = {
    "JSON": b'HTTP/1.1 401 No\r\n\r\n{"error": {"message": "boom: %s", "param": "%s"}}',
    "a page": b"HTTP/1.1 500 No\r\ncontent-type: text/html\r\n\r\n<title>boom</title><p>%s %s",
    "text": b"HTTP/1.1 502 No\r\n\r\nboom %s %s",
    "a redirect": b"HTTP/1.1 307 boom\r\nlocation: http://elsewhere/boom/%s/%s\r\n\r\n",
    "busy": b'HTTP/1.1 429 No\r\n\r\n{"detail": "boom: %s %s"}',
    "success": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    b'{"error": {"message": "boom %s", "param": "%s"}}',
    "another type": b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nboom %s %s",
    "an event": CLOSING + b'data: {"error": {"message": "boom", "param": "%s %s"}}\n\n',
    "an event that is none": CLOSING + b"data: {boom %s %s\n\n",
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_server_that_sends_a_key_back_does_not_bring_it_into_logs(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As pages with details for developers do, which show the headers of the request."""
    caplog.set_level(logging.DEBUG)

    async def play(stream: SocketStream) -> None:
        _, headers, _ = server.requests[-1]
        key, team = headers["authorization"].encode(), headers["x-team-token"].encode()
        await stream.send(PLACES[place] % (key, team))

    async with wire(play) as server:
        with pytest.raises(Exception, match=r"boom|busy") as raised:
            await read(server.url, api_key=KEY, default_headers={"x-team-token": TEAM})
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    error = raised.value
    shown = "".join(traceback.format_exception(error))
    assert "boom" in shown
    for each in filter(None, (error, error.__cause__, error.__context__)):
        shown += repr(vars(each))
        response = getattr(each, "response", None)
        if response is not None and response.is_stream_consumed and place != "another type":
            shown += response.text
    assert "s3cr3t" not in shown
    # httpcore logs the headers of a response.
    records = [each for each in caplog.records if not each.name.startswith("httpcore")]
    assert "s3cr3t" not in str([each.getMessage() for each in records])


async def test_a_password_in_the_address_is_sent_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with wire(ANSWER) as server:
        url = server.url.replace("http://", "http://me:sec%40ret@")
        assert await read(url, api_key="other") == "one two"
    authorization = server.requests[0][1]["authorization"]
    assert authorization == "Basic " + base64.b64encode(b"me:sec@ret").decode()
    assert "HTTP Request" in caplog.text
    assert "sec%40ret" not in caplog.text
    assert "sec@ret" not in caplog.text
    async with wire(
        sends(b"HTTP/1.1 401 No\r\n\r\nnot sec@ret, " + authorization.encode())
    ) as server:
        with pytest.raises(openai.AuthenticationError) as raised:
            await read(server.url.replace("http://", "http://me:sec%40ret@"))
    assert str(raised.value) == "Error code: 401 - not [hidden], [hidden]"


# -- errors before an answer


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"content-length: 1000", b"{"),  # cut off
        (b"transfer-encoding: chunked", b"ff\r\n{"),
        (b"transfer-encoding: chunked", b"no length"),
        (b"content-type: application/json", b"[" * 5000),
        (
            b"content-type: application/json",
            b'{"error": {"code": ' + b"[" * 600 + b"]" * 600 + b"}}",
        ),
        (
            b"content-type: application/json",
            b'{"error": {"code": {"a": [NaN, 1e999]}, "param": []}}',
        ),
        (b"content-type: application/json", b'{"error": {"type": ["timeout_error"], "code": {}}}'),
        (b"content-type: application/json", b'{"error": {"type": "timeout_error", "code": []}}'),
        (b"content-type: application/json", b"9" * 5000),
        (b"content-type: application/json", b"\xff\xfe{\x00"),
        (b"content-type: text/plain; charset=zlib", zlib.compress(bytes(10**6))),
        (b"content-type: text/plain; charset=no-such", b"text"),
        (b"content-type: text/plain; charset=idna", b"xn--\xff"),
        (b"retry-after: Mon, 01 Jan 0001 00:00:00 -0000", b"{}"),
        (b"retry-after: Mon, 99 Jan 99999 00:00:00 GMT", b"{}"),
        (b"retry-after: nan", b"{}"),
        (b"retry-after: 1e999", b"{}"),
        (b"retry-after: \xff", b"{}"),
        (b"retry-after-ms: x", b"{}"),
    ],
)
async def test_whatever_an_error_has_it_is_one_of_openai_s(headers: bytes, body: bytes) -> None:
    answer = b"HTTP/1.1 400 No\r\n" + headers + b"\r\nx-should-retry: %s\r\n\r\n" + body
    for retries in (b"true", b"false"):
        async with wire(sends(answer % retries)) as server:
            with pytest.raises(openai.BadRequestError):
                await read(server.url, max_retries=int(retries == b"true"))


def test_only_a_wait_that_is_a_time_is_told() -> None:
    for value in ("nan", "inf", "-inf", "1e999", "x", "", "Mon, 99 Jan 99999 00:00:00 GMT"):
        assert _http.retry_after({"retry-after": value}) is None
    assert _http.retry_after({"retry-after": "7"}) == 7
    for value in ("-7", "Mon, 01 Jan 2001 00:00:00 GMT"):
        assert _http.retry_after({"retry-after": value}) == 0
