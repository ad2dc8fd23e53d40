"""What goes wrong on the wire: a clear error each time, after the text that had come. No torch."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import openai
import pytest
from anyio import CancelScope
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from anystreamer import EngineBusy, FinishReason, GenerationTimeout, TextStream, Timeouts
from anystreamer._streams.timeouts import Deadlines
from anystreamer.remote import _http, _reader, _refusals, open_remote_engine
from anystreamer.remote._http import httpx

from ..helpers.inside import open_states, state_of, worker_left
from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import PATIENCE, until
from ..helpers.wire import (
    CLOSING,
    DONE,
    HEAD,
    Play,
    Wire,
    chunked,
    ending,
    event,
    said,
    sends,
    wire,
)

# No filter for generators that a client leaves to the collector: none is to be left.
pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")


async def stalls(stream: SocketStream) -> None:
    """Say nothing, until the client has gone."""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await stream.receive()


def then(*plays: Play) -> Play:
    async def play(stream: SocketStream) -> None:
        for each in plays:
            await each(stream)

    return play


async def resets(stream: SocketStream) -> None:
    """Close without a word, as a process does that is killed with data unread."""
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def read(
    url: str, told: list[TextStream] | None = None, *, max_retries: int = 0, **kwargs: Any
) -> str:
    """One request's text, and its stream in *told* once its block was entered."""
    with anyio.fail_after(PATIENCE):
        opens = remote_engine if url.startswith("http:") else open_remote_engine
        async with opens(url, "m", max_retries=max_retries) as engine:
            async with engine.stream_text("hi", **kwargs) as stream:
                if told is not None:
                    told.append(stream)
                text = await stream.read()
        assert engine.statistics().running == engine.statistics().waiting == 0
        return text


async def fails(play: Play, **kwargs: Any) -> tuple[BaseException, TextStream, Wire]:
    """The error of a request that had begun to be answered, its stream, and what the server saw."""
    told: list[TextStream] = []
    async with wire(play) as server:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            await read(server.url, told, **kwargs)
        await until(lambda: not server.open_ones)
    (stream,) = told
    assert not isinstance(raised.value, ExceptionGroup)
    return raised.value, stream, server


# -- an answer that is cut off

TWO = said("one ") + said("two")
ONE_TWO = HEAD + chunked(said("one "), said("two"))


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(sends(ONE_TWO), id="closes in the middle"),
        pytest.param(then(sends(ONE_TWO), resets), id="resets"),
        pytest.param(sends(ONE_TWO + chunked(b"")), id="ends politely"),
        pytest.param(sends(ONE_TWO + b"ff\r\ndata: {"), id="half a chunk"),
        pytest.param(sends(ONE_TWO + b"no length\r\n"), id="no chunk"),
        pytest.param(sends(CLOSING + TWO), id="no length"),
        pytest.param(sends(CLOSING + TWO + said("x")[:-3]), id="half a line"),
        pytest.param(
            sends(CLOSING + TWO + said("é").split(b"\xa9")[0]),
            id="half a character",
        ),
        pytest.param(sends(CLOSING + TWO + said("x")[:-1]), id="no empty line"),
        pytest.param(sends(ONE_TWO + chunked(DONE, b"")), id="done without a reason"),
    ],
)
async def test_what_had_come_is_told_and_then_the_error(play: Play) -> None:
    error, stream, server = await fails(play, max_retries=5)
    assert isinstance(error, openai.APIConnectionError)
    assert "127.0.0.1" in str(error)
    assert stream.text == "one two"
    assert stream.finish_reason is FinishReason.ERROR
    assert stream.usage is None
    assert stream.timing is not None
    assert stream.timing.first_token is not None
    assert len(server.requests) == 1  # never again, once there was an answer


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"data: {not json}\n\n", "does not have"),
        (b"data: [1, 2]\n\n", "does not have"),
        (b"data: 7\n\n", "does not have"),
        (b'data: {"choices": {"no": "list"}}\n\n', "does not have"),
        (b'data: {"choices": [{"text": 7}]}\n\n', "does not have"),
        (b'data: {"choices": [{"text": "\xff"}]}\n\n', "does not have"),
        (event({"error": {"message": "out of memory", "code": 500}}), "^out of memory$"),
        (event({"error": "out of memory"}), "^out of memory$"),
        (event({"object": "error", "message": "out of memory", "code": 500}), "^out of memory$"),
        (event({"error": {"code": 1}}), "without a reason"),
        (ending("abort"), "finish_reason='abort'"),
    ],
)
async def test_an_event_that_is_an_error_or_none(data: bytes, words: str) -> None:
    for play in (
        sends(ONE_TWO + chunked(data, DONE, b"")),
        then(sends(ONE_TWO, chunked(data)), stalls),
    ):
        error, stream, _ = await fails(play)
        assert isinstance(error, openai.APIError)
        with pytest.raises(openai.APIError, match=words):
            raise error
        assert stream.text == "one two"
        assert stream.finish_reason is FinishReason.ERROR


async def test_text_in_the_event_that_fails_is_told_before_the_error() -> None:
    error, stream, _ = await fails(sends(ONE_TWO + chunked(ending("abort", text=" three"), DONE)))
    assert "finish_reason='abort'" in str(error)
    assert stream.text == "one two three"


async def test_a_timeout_of_the_server_s_is_a_timeout() -> None:
    told = {"message": "too long", "type": "timeout_error", "code": "between_tokens"}
    error, stream, _ = await fails(sends(ONE_TWO + chunked(event({"error": told}), DONE, b"")))
    assert isinstance(error, GenerationTimeout)
    assert error.phase == "between_tokens"
    assert (stream.text, stream.finish_reason) == ("one two", FinishReason.TIMEOUT)


async def test_what_was_held_back_for_a_stop_string_is_told_before_the_error() -> None:
    error, stream, _ = await fails(sends(HEAD + chunked(said("one ST"))), stop="STOP")
    assert isinstance(error, openai.APIConnectionError)
    assert stream.text == "one ST"


# -- an answer that is whole, whatever comes after

USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(sends(ONE_TWO + chunked(ending(), USAGE, DONE, b"")), id="in one piece"),
        pytest.param(sends(ONE_TWO, chunked(ending(), USAGE, DONE)), id="closes after done"),
        pytest.param(sends(CLOSING + TWO + ending() + USAGE), id="no done"),
        pytest.param(then(sends(ONE_TWO + chunked(ending(), USAGE, DONE)), stalls), id="stays"),
        pytest.param(then(sends(ONE_TWO + chunked(ending(), USAGE)), stalls), id="no done, stays"),
        pytest.param(
            then(sends(HEAD + chunked(said("one "), ending(text="two"), USAGE)), stalls),
            id="a reason with text, no done, stays",
        ),
        pytest.param(then(sends(ONE_TWO + chunked(ending(), USAGE)), resets), id="resets"),
    ],
)
async def test_an_answer_that_has_ended_is_whole(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reader, "USAGE_TIMEOUT", 0.1)
    monkeypatch.setattr(_reader, "MORE_TEXT_TIMEOUT", 10 * PATIENCE)
    told: list[TextStream] = []
    async with wire(play) as server:
        assert await read(server.url, told) == "one two"
    (stream,) = told
    assert stream.finish_reason is FinishReason.EOS
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 2)


async def test_a_slow_consumer_does_not_miss_what_the_server_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the end of the text nothing waits for the consumer."""
    monkeypatch.setattr(_reader, "USAGE_TIMEOUT", PATIENCE)

    async def play(stream: SocketStream) -> None:
        await stream.send(HEAD + chunked(said("one ")))
        await is_full.wait()
        for piece in (ending(text="two"), USAGE, DONE, b""):
            await stream.send(chunked(piece))
            await anyio.wait_all_tasks_blocked()  # most likely a packet each

    is_full = anyio.Event()
    async with wire(play) as server, open_remote_engine(server.url, "m") as engine:
        async with engine.stream_text("hi", max_buffer_size=1) as stream:
            await until(lambda: state_of(stream).is_full)
            assert await stream.receive() == "one "
            is_full.set()
            await until(lambda: worker_left(stream))
            assert await stream.read() == "two"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 2


async def test_an_answer_whose_connection_breaks_after_the_reason_is_whole() -> None:
    async with wire(sends(ONE_TWO + chunked(ending("length")))) as server:
        told: list[TextStream] = []
        assert await read(server.url, told) == "one two"
    assert told[0].finish_reason is FinishReason.LENGTH
    assert told[0].usage is None


async def test_the_body_may_be_cut_anywhere_and_have_other_line_ends() -> None:
    body = (
        b": a comment\r\n\r\nevent: message\r\nid: 1\r\n"
        + said("é\u2028🙂").replace(b"\n\n", b"\r\n\r\n")
        + b'data: {"choices":\rdata: [{"text": "\\ud83d"}]}\r\r'  # half of one, and in two lines
        + b'data:{"choices":[{"text":"\\ude42."}]}\n\n'
        + ending()
        + DONE
    )
    assert body.isascii() is False
    async with wire(sends(CLOSING, *(body[i : i + 1] for i in range(len(body))))) as server:
        assert await read(server.url) == "é\u2028🙂🙂."


async def test_halves_of_characters_that_stay_alone_do_not_become_text_that_nobody_can_print() -> (
    None
):
    body = [
        b'data: {"choices": [{"text": "%s"}]}\n\n' % each for each in (b"\\ud83d", b"a", b"\\ud83d")
    ]
    async with wire(sends(CLOSING + b"".join(body) + ending())) as server:
        text = await read(server.url)
    assert text == "\ufffda\ufffd"
    text.encode()


async def test_halves_of_characters_become_one_in_every_field() -> None:
    events = [
        b'data: {"choices": [{"delta": {%s}}]}\n\n' % delta
        for delta in (
            b'"reasoning_content": "\\ud83d"',
            b'"reasoning_content": "\\ude42"',
            b'"reasoning_content": "\\ud83d"',
            b'"content": "a"',
            b'"tool_calls": [{"function": {"name": "f", "arguments": "{\\"a\\": \\"\\ud83d"}}]',
            b'"tool_calls": [{"function": {"arguments": "\\ude42\\"}"}}]',
        )
    ]
    play = sends(CLOSING + b"".join(events) + ending())
    async with wire(play) as server, remote_engine(server.url) as engine:
        async with engine.stream_text([{"role": "user", "content": "hi"}]) as stream:
            await stream.read()
    assert stream.message == {
        "role": "assistant",
        "reasoning_content": "🙂\ufffd",
        "content": "a",
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": "🙂"}}},
        ],
    }


async def test_a_connection_is_used_again_after_an_answer() -> None:
    async def twice(stream: SocketStream) -> None:
        for _ in range(3):
            await stream.send(ONE_TWO + chunked(ending(), DONE, b""))
            await server.request(stream)

    async with wire(twice) as server, open_remote_engine(server.url, "m") as engine:
        for _ in range(3):
            async with engine.stream_text("hi") as stream:
                assert await stream.read() == "one two"
        assert server.connections == 1


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    async with wire(ANSWER) as server, remote_engine(server.url, max_retries=0) as engine:
        for number in range(3):
            async with engine.stream_text("hi") as stream:
                assert await stream.read() == "one two"
            await until(lambda: not server.open_ones)
            assert server.connections == number + 1


# -- no answer at all


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"content-type: text/html\r\n", "text/html"),
        (b"content-type: application/json\r\n", "application/json"),
        (b"", "no content-type"),
    ],
)
async def test_an_answer_of_another_type_is_refused_at_the_entry(head: bytes, words: str) -> None:
    play = then(sends(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n<html>"), stalls)
    async with wire(play) as server:
        with pytest.raises(openai.APIResponseValidationError, match=words):
            await read(server.url)
        await until(lambda: not server.open_ones)


SAYS = {
    "FastAPI": (b"application/json", b'{"detail": "boom"}'),
    "TGI, Ollama": (b"application/json", b'{"error": "boom", "error_type": "validation"}'),
    "Gemini": (b"application/json", b'[{"error": {"code": 400, "message": "boom"}}]'),
    "Mistral": (b"application/json", b'{"message": "boom", "request_id": "1"}'),
    "OpenAI": (b"application/json", b'{"error": {"message": "boom"}}'),
    "nested": (b"application/problem+json", b'{"error": {"message": {"error": "boom"}}}'),
    "nginx": (b"text/html", b"<html><head><title>boom</title></head><h1>nginx</h1></html>"),
    "a page": (b"text/html", b"\n<p\nclass='x'>boom</p>"),
    "text": (b"text/plain", b"boom"),
    "no type": (b"", b"boom\n"),
    "not JSON": (b"application/json", b"boom"),
}


@pytest.mark.parametrize("status", [401, 413, 502])
async def test_an_error_has_what_the_server_says(status: int) -> None:
    for name, (media_type, body) in SAYS.items():
        head = b"HTTP/1.1 %d No\r\ncontent-type: %s\r\n" % (status, media_type)
        async with wire(sends(head + b"content-length: %d\r\n\r\n" % len(body) + body)) as server:
            with pytest.raises(openai.APIStatusError, match="boom") as raised:
                await read(server.url)
        assert str(raised.value).startswith(f"Error code: {status}"), name
        assert len(str(raised.value)) < 100, name
        assert raised.value.status_code == status


async def test_the_cause_of_a_busy_engine_has_what_the_server_says() -> None:
    head = b"HTTP/1.1 503 No\r\ncontent-type: text/html\r\nretry-after-ms: 1500\r\n\r\n"
    async with wire(sends(head + b"<title>boom</title>")) as server:
        with pytest.raises(EngineBusy) as raised:
            await read(server.url)
    assert raised.value.retry_after == 1.5
    assert "boom" in str(raised.value.__cause__)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"Unexpected endpoint or method. (POST /completions)"}',  # LM Studio
        b'{"error": {"message": "Unexpected endpoint", "code": 502}}',  # OpenRouter
        b'[{"error": {"message": "Unexpected endpoint"}}]',
        b'{"detail": "Unexpected endpoint"}',
    ],
    ids=["LM Studio", "OpenRouter", "Gemini", "FastAPI"],
)
async def test_an_error_with_a_status_of_success_is_raised_at_the_entry(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    async with wire(sends(head + b"content-length: %d\r\n\r\n" % len(body) + body)) as server:
        with pytest.raises(openai.APIError, match=r"^Unexpected endpoint"):
            await read(server.url)
        await until(lambda: not server.open_ones)


async def test_a_timeout_of_the_server_s_with_a_status_of_success_is_a_timeout() -> None:
    error = event({"error": {"type": "timeout_error", "code": "queued"}})[6:]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    async with wire(sends(head + error)) as server:
        with pytest.raises(GenerationTimeout, match="queued"):
            await read(server.url)


async def test_a_page_in_place_of_an_answer_says_which() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n"
    async with wire(sends(head + b"<TITLE lang=en>Sign in &amp; go on</TITLE>")) as server:
        with pytest.raises(openai.APIResponseValidationError, match=r"\(Sign in & go on\)"):
            await read(server.url)


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (sends(), "disconnected"),
        (then(resets), ""),
        (sends(b"HTTP/1.1 200 OK\r\ncontent-ty"), "disconnected"),
        (sends(b"SSH-2.0-OpenSSH_9.6\r\n"), ""),
    ],
)
async def test_who_closes_before_the_headers_cannot_be_reached(play: Play, words: str) -> None:
    async with wire(play) as server:
        with pytest.raises(
            openai.APIConnectionError, match=f"cannot be reached: .*{words}"
        ) as raised:
            await read(server.url)
        assert raised.value.__cause__ is not None
        assert len(server.requests) == 1


async def test_who_refuses_connections_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(openai.APIConnectionError, match=r"127\.0\.0\.1 cannot be reached: .*"):
        await read(f"http://127.0.0.1:{port}")


async def test_who_has_no_address_cannot_be_reached() -> None:
    with pytest.raises(openai.APIConnectionError, match=r"nowhere\.invalid cannot be reached"):
        await read("http://nowhere.invalid")


async def test_a_server_without_tls_where_it_was_expected() -> None:
    async def speaks_plainly(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with wire(speaks_plainly, reads=False) as server:
        with pytest.raises(openai.APIConnectionError, match="SSL"):
            await read(server.url.replace("http:", "https:"))


CERTIFICATE = Path(__file__).parents[1] / "helpers" / "localhost.pem"


async def test_a_certificate_that_nobody_vouches_for_and_one_that_is_trusted() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)

    async def over_tls(stream: SocketStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
            async with await TLSStream.wrap(
                stream, server_side=True, ssl_context=context, standard_compatible=False
            ) as tls:
                await tls.receive()
                await tls.send(CLOSING + said("safe") + ending())

    async with wire(over_tls, reads=False) as server:
        url = server.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
        with pytest.raises(openai.APIConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await read(url)
        trusted = ssl.create_default_context(cafile=str(CERTIFICATE))
        client = httpx.AsyncClient(verify=trusted, trust_env=False)
        async with open_remote_engine(url, "m", http_client=client) as engine:
            async with engine.stream_text("hi") as stream:
                assert await stream.read() == "safe"


# -- not now

JSON = b"content-type: application/json\r\n"


def refused(status: int, headers: bytes = b"", **error: Any) -> Play:
    body = event({"error": {"message": "not now", **error}})[6:]
    head = b"HTTP/1.1 %d No\r\n%s%scontent-length: %d\r\n\r\n" % (status, JSON, headers, len(body))
    return sends(head + body)


ANSWER = sends(ONE_TWO + chunked(ending(), DONE, b""))


@pytest.mark.parametrize("status", [429, 503])
async def test_who_is_busy_says_when_to_come_again(status: int) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True).encode()
    for told, seconds in ((b"7", 7.0), (b"0.5", 0.5), (later, 90.0), (b"soon", None), (b"", None)):
        async with wire(refused(status, b"retry-after: %s\r\n" % told)) as server:
            with pytest.raises(EngineBusy, match="busy") as raised:
                await read(server.url)
        assert raised.value.waiting is None
        retry_after = raised.value.retry_after
        assert retry_after == seconds or (seconds == 90 and 60 < (retry_after or 0) <= 90)
        assert isinstance(raised.value.__cause__, openai.APIStatusError)
        assert "not now" in str(raised.value.__cause__)


async def test_a_request_that_was_refused_for_now_is_made_again_when_it_was_told() -> None:
    busy = refused(503, b"retry-after: 0.05\r\n")
    async with wire(busy, busy, ANSWER) as server:
        started = anyio.current_time()
        assert await read(server.url, max_retries=2) == "one two"
        assert anyio.current_time() - started >= 0.1
        assert len(server.requests) == 3
        assert len({str(body) for body in server.bodies}) == 1


async def test_a_request_is_not_made_again_for_ever() -> None:
    async with wire(refused(429, b"retry-after: 0.01\r\n")) as server:
        with pytest.raises(EngineBusy):
            await read(server.url, max_retries=2)
        assert len(server.requests) == 3


async def test_a_request_that_nobody_answered_is_made_again() -> None:
    async with wire(sends(), ANSWER) as server:
        assert await read(server.url, max_retries=1) == "one two"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {}, openai.BadRequestError),
        (401, {}, openai.AuthenticationError),
        (404, {}, openai.NotFoundError),
        (500, {}, openai.InternalServerError),
        (503, {"code": "engine_unavailable"}, openai.InternalServerError),
        (429, {"code": "insufficient_quota"}, openai.RateLimitError),
        (504, {"type": "timeout_error", "code": "queued"}, GenerationTimeout),
    ],
)
async def test_other_refusals_are_told_at_the_entry(status: int, error: Any, kind: Any) -> None:
    async with wire(refused(status, **error)) as server:
        with pytest.raises(kind):
            await read(server.url)
        assert len(server.requests) == 1


# -- silence

ROLE = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})


@pytest.mark.parametrize("phase", ["queued", "total"])
async def test_a_server_that_never_answers_is_given_up(phase: str) -> None:
    async with wire(stalls) as server:
        with pytest.raises(GenerationTimeout) as raised:
            await read(server.url, timeout=Timeouts(**{phase: 0.05}))
        assert raised.value.phase == phase
        await until(lambda: not server.open_ones)


async def test_waiting_to_make_a_request_again_counts() -> None:
    async with wire(refused(503, b"retry-after: 60\r\n")) as server:
        with pytest.raises(GenerationTimeout, match="queued"):
            await read(server.url, max_retries=2, timeout=Timeouts(queued=0.05))


def late_after(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time of every deadline come as soon as there were so many events with text.

    A deadline of some tenths of a second would sometimes pass before that, on a busy machine.
    """
    made = 0
    token_made, next_ = Deadlines.token_made, Deadlines.next

    def count(deadlines: Deadlines, spent: float) -> None:
        nonlocal made
        made += 1
        token_made(deadlines, spent)

    def due(deadlines: Deadlines, now: float, spent: float) -> tuple[float, str]:
        ahead = 1e9 if made >= tokens else 0.0
        return next_(deadlines, now + ahead, spent + ahead)

    monkeypatch.setattr(Deadlines, "token_made", count)
    monkeypatch.setattr(Deadlines, "next", due)


ONE = HEAD + chunked(said("one two"))


@pytest.mark.parametrize(
    ("part", "phase", "text"),
    [
        (HEAD, "first_token", ""),
        (HEAD, "total", ""),
        (HEAD + chunked(ROLE), "first_token", ""),
        (HEAD + chunked(b": keep-alive\n\n"), "first_token", ""),
        (ONE, "between_tokens", "one two"),
        (ONE, "total", "one two"),
        (ONE + b"ff\r\ndata: {", "between_tokens", "one two"),
    ],
)
async def test_a_server_that_falls_silent_is_given_up(
    part: bytes, phase: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_after(1 if text else 0, monkeypatch)
    error, stream, _ = await fails(
        then(sends(part), stalls), timeout=Timeouts(**{phase: 2 * PATIENCE})
    )
    assert isinstance(error, GenerationTimeout)
    assert error.phase == phase
    assert stream.text == text
    assert stream.finish_reason is FinishReason.TIMEOUT


async def test_the_time_that_a_consumer_takes_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slowly(stream: SocketStream) -> None:
        await stream.send(HEAD + chunked(said("one")))
        for _ in range(3):
            await go_on.wait()
            await stream.send(chunked(said("two")))
        await stream.send(chunked(ending(), DONE, b""))

    ahead = 0.0
    go_on = anyio.Event()
    monkeypatch.setattr(_reader, "perf_counter", lambda: perf_counter() + ahead)
    timeout = Timeouts(between_tokens=2 * PATIENCE)
    async with wire(slowly) as server, open_remote_engine(server.url, "m") as engine:
        async with engine.stream_text("hi", timeout=timeout, max_buffer_size=1) as stream:
            await until(lambda: state_of(stream).is_full)
            await anyio.wait_all_tasks_blocked()  # the reader waits for space
            ahead = 1e9
            go_on.set()
            assert await stream.read() == "onetwotwotwo"


async def test_a_consumer_that_takes_too_long_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    late_after(1, monkeypatch)
    timeout = Timeouts(total=2 * PATIENCE)
    async with wire(then(sends(ONE), stalls)) as server:
        async with open_remote_engine(server.url, "m") as engine:
            async with engine.stream_text("hi", timeout=timeout, max_buffer_size=1) as stream:
                await until(lambda: worker_left(stream))
                with pytest.raises(GenerationTimeout, match="total"):
                    await stream.read()
                assert stream.text == "one two"


# -- who goes


GOING = ["scope", "deadline", "aclose", "stop", "leaving", "raising"]


@pytest.mark.parametrize(
    ("before", "way"),
    [
        *(("headers", way) for way in GOING[:2]),  # there is no stream yet
        *(("text", way) for way in GOING),
        *(("more text", way) for way in GOING),
    ],
)
async def test_whoever_goes_closes_the_connection(before: str, way: str) -> None:
    parts = {"headers": [], "text": [HEAD], "more text": [ONE_TWO]}[before]
    text = "one two" if before == "more text" else ""

    async def play(connection: SocketStream) -> None:
        await sends(*parts)(connection)
        if before == "headers" and way == "scope":
            scope.cancel()
        await stalls(connection)

    async with wire(play) as server, open_remote_engine(server.url, "m") as engine:
        with contextlib.suppress(KeyError), CancelScope() as scope:
            if way == "deadline":
                scope.deadline = anyio.current_time() + 0.1
            async with engine.stream_text("hi") as stream:
                if text:
                    await until(lambda: state_of(stream).has_item)
                if way == "scope":
                    scope.cancel()
                if way in ("scope", "deadline"):
                    await stream.read()
                if way == "aclose":
                    await stream.aclose()
                if way == "stop":
                    stream.stop()
                    assert await stream.read() == text
                    assert stream.finish_reason is FinishReason.STOPPED
                if way == "raising":
                    raise KeyError
        assert scope.cancelled_caught == (way in ("scope", "deadline"))
        await until(lambda: not server.open_ones)
        assert engine.statistics().running == engine.statistics().waiting == 0


MOMENTS: dict[str, list[bytes]] = {
    "half of the head": [HEAD[:20]],
    "an error's body": [b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"],
    "a body of another type": [b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<p>"],
    "a pause before the next attempt": [
        b"HTTP/1.1 503 No\r\nretry-after: 60\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    ],
    "the usage": [ONE_TWO + chunked(ending())],
    "the end of the body": [ONE_TWO + chunked(ending(), DONE)],
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_scope_that_is_cancelled_in_any_moment_closes_the_connection(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USAGE_TIMEOUT", "DRAIN"):
        monkeypatch.setattr(_reader, name, PATIENCE)
    monkeypatch.setattr(_http, "ERROR_TIMEOUT", PATIENCE)
    monkeypatch.setattr(_refusals, "REFUSAL_TIMEOUT", PATIENCE)

    async def play(connection: SocketStream) -> None:
        await sends(*MOMENTS[moment])(connection)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        if moment != "a pause before the next attempt":
            await stalls(connection)

    async with wire(play) as server, remote_engine(server.url, max_retries=2) as engine:
        with CancelScope() as scope:
            async with engine.stream_text("hi") as stream:
                await until(lambda: worker_left(stream))
        assert scope.cancelled_caught
        await until(lambda: not server.open_ones)
        assert server.connections == 1
        await until(lambda: not engine.statistics().running)


async def test_leaving_the_engine_closes_all_connections() -> None:
    async with wire(then(sends(ONE_TWO), stalls)) as server, anyio.create_task_group() as tasks:
        texts: list[str] = []

        async def ask() -> None:
            async with engine.stream_text("hi") as stream:
                with pytest.raises(Exception, match="closed"):
                    await stream.read()
                texts.append(stream.text)

        async with open_remote_engine(server.url, "m") as engine:
            for _ in range(5):
                tasks.start_soon(ask)
            await until(lambda: engine.statistics().running == 5)
            await until(lambda: all(state.clock.first_token_at for state in open_states(engine)))
        await until(lambda: not server.open_ones)
    assert texts == ["one two"] * 5
