"""The limits of connections, on each server as `anystreamer serve` runs it. Clients are sockets."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from starlette.applications import Starlette

from anystreamer import Engine, open_engine
from anystreamer.cli.connection_limits import ConnectionLimits
from anystreamer.demo import load_demo
from anystreamer.server import _body_sender, create_app
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.batchings import BATCHINGS
from ..helpers.scripted import PATIENCE, PROGRAM_PATIENCE, until
from ..helpers.serving import SERVERS, client_of, limited_serving

pytestmark = [
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    pytest.mark.parametrize("server", SERVERS),
]

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)
ENDLESS = ["word "] * 20_000
LINE = b"POST /v1/completions HTTP/1.1\r\n"
HEAD = LINE + b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def application() -> Starlette:
    return Starlette()  # it answers 404


def request(body: dict[str, Any], *headers: str) -> bytes:
    content = json.dumps({"prompt": "Hi", **body}).encode()
    lines = "".join(f"{each}\r\n" for each in (*headers, f"content-length: {len(content)}"))
    return HEAD + lines.encode() + b"\r\n" + content


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[SocketStream]:
    host, _, port = url.removeprefix("http://").partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        yield stream


async def rest_of(stream: SocketStream) -> bytes:
    """All bytes until the server closes the connection, which it must."""
    received = b""
    with anyio.fail_after(PATIENCE), suppress(anyio.EndOfStream, *GONE):
        while True:
            received += await stream.receive()
    return received


async def response_of(stream: SocketStream) -> bytes:
    """A response with a length, such as one of this server's JSON bodies."""
    received = b""
    with anyio.fail_after(PATIENCE):
        while True:
            received += await stream.receive()
            head, found, body = received.partition(b"\r\n\r\n")
            if found and len(body) == int(head.lower().split(b"content-length: ")[1].split()[0]):
                return received


@asynccontextmanager
async def edge(
    server: str,
    model: ScriptedModel,
    limits: ConnectionLimits | None = None,
    *,
    send_buffer: int | None = None,
    **options: Any,
) -> AsyncIterator[tuple[str, Engine]]:
    async with open_engine(model, model.tokenizer) as engine:
        app = create_app(engine, context_length=10**7, **options)
        async with limited_serving(app, server, limits, send_buffer=send_buffer) as url:
            yield url, engine


# -- a request that does not end


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /", b"x" * 1000),
        (LINE + b"host: 127.0.0.1\r\nname: ", b"x" * 1000),
        (LINE + b"host: 127.0.0.1\r\n", b"name: value\r\n" * 100),
        (CHUNKED, b"1" * 1000),
        (CHUNKED + b"1;", b"x" * 1000),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"name: value\r\n" * 100),
    ],
    ids=["request line", "header", "headers", "chunk size", "chunk extension", "trailers"],
)
async def test_an_endless_head_is_cut_off(server: str, start: bytes, more: bytes) -> None:
    sent = 0
    # It is not the time that ends it.
    limits = ConnectionLimits(head_timeout=600.0)
    async with edge(server, ScriptedModel(["a"]), limits) as (url, _), connected(url) as stream:
        with anyio.fail_after(PATIENCE), suppress(*GONE):
            await stream.send(start)
            while sent < 2**23:  # what the kernel takes is much less
                await stream.send(more)
                sent += len(more)
        response = await rest_of(stream)
    assert sent < 2**23
    assert not response or response.split()[1] in (b"400", b"431")


@pytest.mark.parametrize("is_trailer", [False, True], ids=["head", "trailers"])
async def test_a_head_has_only_so_many_lines(server: str, is_trailer: bool) -> None:
    async def status_with(lines: int) -> bytes:
        headers = b"a: b\r\n" * lines + b"\r\n"
        body = b'{"prompt": "Hi"}'
        if is_trailer:
            chunks = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
            sent = (
                HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + headers
            )
        else:
            sent = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n" + headers
        async with connected(url) as stream:
            with suppress(*GONE):
                await stream.send(sent)
            return (await rest_of(stream) or b"- 400 ").split()[1]

    async with edge(server, ScriptedModel(["a"])) as (url, _):
        assert await status_with(100) == b"200"
        assert await status_with(9_000) in (b"400", b"431")


async def test_a_body_can_have_more_lines_than_a_head(server: str) -> None:
    async with edge(server, ScriptedModel(["a"])) as (url, _), client_of(url) as client:
        body = b'{"prompt":' + b"\n" * 50_000 + b'"Hi"}'
        headers = {"content-type": "application/json"}
        for _ in range(2):  # on one connection
            response = await client.post("/v1/completions", content=body, headers=headers)
            assert response.status_code == 200


async def test_a_head_of_half_the_limit_is_answered(server: str) -> None:
    async with limited_serving(application(), server) as url, client_of(url) as client:
        assert (await client.get("/", headers={"name": "x" * 2**15})).status_code == 404
        assert (await client.get("/" + "x" * 2**15)).status_code == 404
        larger = await client.get("/", headers={"name": "x" * 2**18})
        assert larger.status_code in (400, 431)


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nhost: ", b""),
        (b"GET / HTTP/1.1\r\nhost: ", b"x"),
        # Answered before its body has arrived.
        (b"POST /no HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n", b"x"),
        # The head of a second request.
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: ", b"x"),
    ],
    ids=["silent", "half", "in drops", "body in drops", "second in drops"],
)
async def test_a_head_that_does_not_arrive_is_not_waited_for(
    server: str, start: bytes, drop: bytes
) -> None:
    async def send_drops() -> None:
        with suppress(*GONE):
            while drop:
                await stream.send(drop)
                await anyio.sleep(0.05)

    limits = ConnectionLimits(head_timeout=0.3)
    async with limited_serving(application(), server, limits) as url, connected(url) as stream:
        async with anyio.create_task_group() as tasks:
            await stream.send(start)
            tasks.start_soon(send_drops)
            await rest_of(stream)
            tasks.cancel_scope.cancel()


async def test_only_so_many_connections_are_open(server: str) -> None:
    async with limited_serving(application(), server, ConnectionLimits(max_connections=2)) as url:
        get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        async with connected(url) as first, connected(url) as second:
            for stream in (first, second):
                await stream.send(get)
                assert b" 404 " in await response_of(stream)
            async with connected(url) as third:
                assert b" 503 " in await rest_of(third)
        # Who leaves makes room.
        with anyio.fail_after(PATIENCE):
            status = b"503"
            while status == b"503":
                async with connected(url) as stream:
                    with suppress(*GONE):
                        await stream.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                    status = (await rest_of(stream) or b" 503 ").split()[1]
        assert status == b"404"


async def answers_those_who_left(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers `/left` when its client has disconnected, the others at once."""
    while scope.get("path") == "/left" and (await receive())["type"] != "http.disconnect":
        pass
    await application()(scope, receive, send)


@pytest.mark.parametrize("path", ["", "left"], ids=["answered", "left before the answer"])
async def test_a_connection_that_its_client_has_closed_is_closed_at_once(
    server: str, path: str
) -> None:
    """Not after the time for idle connections."""
    limits = ConnectionLimits(max_connections=1, head_timeout=10 * PATIENCE)
    async with limited_serving(answers_those_who_left, server, limits) as url:
        status = b""
        async with connected(url) as stream:
            await stream.send(f"GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            if not path:
                assert b" 404 " in await response_of(stream)
        with anyio.fail_after(PATIENCE):
            while status != b"404":
                async with connected(url) as stream:
                    with suppress(*GONE):
                        await stream.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                    status = (await rest_of(stream) or b" 503 ").split()[1]


# -- a client that disconnects, with bytes behind its request


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("later", [False, True], ids=["with it", "later"])
@pytest.mark.parametrize(
    "behind",
    [b"x", request({}), request({}) * 100],
    ids=["byte", "request", "many requests"],
)
async def test_bytes_behind_a_request_hide_no_disconnect(
    server: str, is_streamed: bool, later: bool, behind: bytes
) -> None:
    gate = Gate()
    model = ScriptedModel(["one", gate, *ENDLESS], delay=0.001)
    asked = request({"stream": is_streamed, "max_tokens": 10**5})
    async with edge(server, model) as (url, engine):
        async with connected(url) as stream:
            await stream.send(asked + (b"" if later else behind))
            await gate.reached()
            if later:
                for byte in (behind[:1], behind[1:]):
                    await stream.send(byte or b"z")
                    await anyio.sleep(0.01)
            gate.open()
            await until(lambda: model.steps > 3)
        await until(lambda: not (model.is_generating or engine.statistics().running))
    assert model.steps < len(ENDLESS)


async def has_begun(model: ScriptedModel, stream: SocketStream, asked: bytes) -> bool:
    """Send a request. Returns whether the model begins with it before the connection is closed."""
    with suppress(*GONE):
        await stream.send(asked)
    async with anyio.create_task_group() as tasks:

        async def wait_for_end() -> None:
            await rest_of(stream)
            tasks.cancel_scope.cancel()

        tasks.start_soon(wait_for_end)
        await until(lambda: model.steps)
        tasks.cancel_scope.cancel()
    return model.steps > 0


async def test_a_client_that_floods_behind_its_request_is_cut_off(server: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    limits = ConnectionLimits(head_timeout=1.0)
    async with edge(server, model, limits) as (url, engine), AsyncExitStack() as stack:
        begun = False
        while not begun:  # on a busy machine, the time for its head can pass before it is read
            stream = await stack.enter_async_context(connected(url))
            begun = await has_begun(model, stream, request({"max_tokens": 10**5}))
        with anyio.fail_after(PATIENCE), suppress(*GONE):
            while True:
                await stream.send(b"x" * 10_000)
        await until(lambda: not (model.is_generating or engine.statistics().running))
    assert model.steps < len(ENDLESS)


async def test_a_byte_behind_the_last_request_ends_the_response(server: str) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    body = {"max_tokens": 10**5, "stream": True}
    async with edge(server, model) as (url, engine), connected(url) as stream:
        await stream.send(request(body, "connection: close"))
        await until(lambda: model.is_generating)
        await stream.send(b"x")
        await rest_of(stream)
        await until(lambda: not (model.is_generating or engine.statistics().running))


async def test_pipelined_requests_are_answered_in_turn(server: str) -> None:
    model = ScriptedModel(["one"])
    async with edge(server, model) as (url, _), connected(url) as stream:
        await stream.send(request({}) + request({}) + request({}, "connection: close"))
        received = await rest_of(stream)
    assert received.count(b" 200 ") == received.count(b'"text":"one"') == 3


# -- the end of a response


@pytest.mark.parametrize(
    "asked",
    [
        request({}, "connection: close"),
        request({"stream": True}, "connection: close"),
        request({"nothing": 1}, "connection: close"),
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n",
    ],
    ids=["whole", "streamed", "refused", "health", "page"],
)
async def test_it_closes_after_its_answer(server: str, asked: bytes) -> None:
    limits = ConnectionLimits(head_timeout=600.0)
    async with edge(server, ScriptedModel(["one"]), limits) as (url, _), connected(url) as stream:
        await stream.send(asked)
        received = await rest_of(stream)
        assert received.split()[1] in (b"200", b"400")
        assert b"stream" not in asked or received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_no_piece_waits_for_the_client_s_kernel(server: str) -> None:
    async with limited_serving(application(), server) as url, connected(url) as stream:
        await stream.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await response_of(stream)
        (accepted,) = peers_of(stream.extra(SocketAttribute.local_address))
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def peers_of(address: Any) -> list[socket.socket]:
    """This process's sockets that are connected to *address*, as copies."""
    # All numbers before the first copy, which takes a number that has become free.
    numbers = [int(name) for name in os.listdir("/proc/self/fd") if is_socket(int(name))]
    copies = [socket.socket(fileno=os.dup(number)) for number in numbers]
    found = [each for each in copies if is_connected_to(each, address)]
    for each in copies:
        if each not in found:
            each.close()
    return found


def is_socket(number: int) -> bool:
    with suppress(OSError):  # it has been closed
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    return False


def is_connected_to(each: socket.socket, address: Any) -> bool:
    try:
        return bool(each.getpeername() == address)
    except OSError:
        return False


def is_open(client: socket.socket) -> bool:
    """Whether the server has its end of that connection."""
    found = peers_of(client.getsockname())
    for each in found:
        each.close()
    return bool(found)


# -- a client that takes nothing


def deaf(url: str) -> socket.socket:
    """A client whose kernel takes little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = url.removeprefix("http://").partition(":")
    client.connect((host, int(port)))
    client.setblocking(False)
    return client


async def check_that_it_is_counted(url: str, endpoint: str = "completions") -> None:
    """Once its streams have been left, its response still has to end."""
    async with client_of(url) as client:
        with anyio.fail_after(PATIENCE):
            while True:
                metrics = (await client.get("/metrics")).text
                if f'endpoint="{endpoint}",outcome="stalled"}} 1.0' in metrics:
                    return
                await anyio.sleep(0.05)


@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_takes_nothing_is_left(server: str, n: int) -> None:
    model = ScriptedModel(["word " * 100] * 20_000, delay=0.001)
    limits = ConnectionLimits(send_timeout=0.3)
    options: dict[str, Any] = {"send_timeout": limits.send_timeout, "keep_alive": 0.1}
    async with edge(server, model, limits, send_buffer=4096, **options) as (url, engine):
        with deaf(url) as client:
            client.send(request({"stream": True, "max_tokens": 10**5, "n": n}))
            await until(lambda: model.steps)
            await until(lambda: not (model.is_generating or engine.statistics().running))
            assert model.steps < n * 20_000
            await until(lambda: not is_open(client))
        await check_that_it_is_counted(url)


async def test_a_client_that_does_not_take_a_whole_answer_is_left(server: str) -> None:
    model = ScriptedModel(["word " * 1000] * 100)
    limits = ConnectionLimits(send_timeout=0.3)
    options: dict[str, Any] = {"send_timeout": limits.send_timeout}
    async with edge(server, model, limits, send_buffer=4096, **options) as (url, _):
        with deaf(url) as client:
            client.send(request({}))
            await until(lambda: is_open(client))
            await until(lambda: not is_open(client))


@pytest.mark.parametrize("limit", [{"max_unsent_tokens": 100}, {"max_unsent_bytes": 100}])
async def test_what_waits_for_a_client_of_responses_is_bounded(
    server: str, limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_body_sender, "STALL_CHECK_INTERVAL", 0.1)
    model = ScriptedModel(["word " * 100] * 100_000, delay=0.0001)
    options: dict[str, Any] = dict.fromkeys(("max_unsent_tokens", "max_unsent_bytes")) | limit
    options |= {"send_timeout": None, "keep_alive": None}
    content = json.dumps({"input": "Hi", "stream": True, "max_output_tokens": 10**5}).encode()
    head = HEAD.replace(b"/v1/completions", b"/v1/responses")
    async with edge(server, model, send_buffer=4096, **options) as (url, engine):
        with deaf(url) as client:
            client.send(head + b"content-length: %d\r\n\r\n" % len(content) + content)
            await until(lambda: model.is_generating)
            await until(lambda: not (model.is_generating or engine.statistics().running))
        await check_that_it_is_counted(url, "responses")
    assert model.steps < 100_000


@pytest.mark.parametrize("limit", [{"max_unsent_tokens": 100}, {"max_unsent_bytes": 100}])
async def test_what_waits_for_a_client_is_bounded(
    server: str, limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens, or the bytes of the part that it does not take."""
    monkeypatch.setattr(_body_sender, "STALL_CHECK_INTERVAL", 0.1)
    model = ScriptedModel(["word " * 100] * 100_000, delay=0.0001)
    options: dict[str, Any] = dict.fromkeys(("max_unsent_tokens", "max_unsent_bytes")) | limit
    options |= {"send_timeout": None, "keep_alive": None}
    async with edge(server, model, send_buffer=4096, **options) as (url, engine):
        with deaf(url) as client:
            client.send(request({"stream": True, "max_tokens": 10**5}))
            await until(lambda: model.is_generating)
            await until(lambda: not (model.is_generating or engine.statistics().running))
        await check_that_it_is_counted(url)
    assert model.steps < 100_000


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread_for_the_model")
@pytest.mark.parametrize("limit", ["send_timeout", "max_unsent_tokens"])
@pytest.mark.parametrize("batching", BATCHINGS[1:])
async def test_a_client_that_takes_nothing_of_a_batch_is_left(
    server: str, batching: Any, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each limit alone. The connection itself has none."""
    import transformers

    monkeypatch.setattr(_body_sender, "STALL_CHECK_INTERVAL", 0.1)
    model, tokenizer = load_demo()
    options: dict[str, Any] = {"send_timeout": None, "max_unsent_tokens": None}
    options |= {"max_unsent_bytes": None, limit: 0.4 if limit == "send_timeout" else 50}
    config = transformers.ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=256)
    asked = request({"prompt": "The hours:", "stream": True, "max_tokens": 2000})
    async with open_engine(
        model, tokenizer, batching=batching, continuous_batching_config=config
    ) as engine:
        app, none = create_app(engine, **options), ConnectionLimits(send_timeout=None)
        async with limited_serving(app, server, none, send_buffer=4096) as url:
            with deaf(url) as client:
                client.send(asked)
                await until(lambda: engine.statistics().running)
                with anyio.fail_after(PROGRAM_PATIENCE):
                    while engine.statistics().running:
                        await anyio.sleep(0.01)
                await until(lambda: not is_open(client))
            assert engine.statistics().computed_tokens < 2000
            await check_that_it_is_counted(url)


async def test_a_slow_client_gets_all(server: str) -> None:
    model = ScriptedModel(["word " * 10] * 2_000)
    async with edge(server, model, send_buffer=4096) as (url, _), connected(url) as stream:
        asked = {"stream": True, "max_tokens": 10**4}
        await stream.send(request(asked, "connection: close"))
        received = b""
        with anyio.fail_after(PATIENCE), suppress(anyio.EndOfStream):
            while True:
                received += await stream.receive(4096)
                await anyio.sleep(0.0005)
    assert received.count(b"word ") == 20_000
    assert b"data: [DONE]" in received


# -- the target of a request


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1:1/v1/models/on%65?a=http://b/", b"200"),
        ("HTTPS://127.0.0.1/v1/models/one", b"200"),
        ("http://127.0.0.1/v1/models/other", b"404"),
        ("http://127.0.0.1", b"200"),
        ("http://attacker.example/v1/models/one", b"400"),
        ("http://a@127.0.0.1/v1/models/one", b"404"),
        ("ftp://127.0.0.1/v1/models/one", b"404"),
        ("http:///v1/models/one", b"404"),
        ("*", b"404"),
    ],
)
async def test_a_target_with_a_host_is_read_like_any_other(
    server: str, target: str, status: bytes
) -> None:
    """As clients send it that take the server for a proxy. Its host counts, and no header."""
    options: dict[str, Any] = {"model_name": "one", "allowed_hosts": ["127.0.0.1"]}
    async with edge(server, ScriptedModel(["one"]), **options) as (url, _):
        for host in ("127.0.0.1", "attacker.example"):
            async with connected(url) as stream:
                head = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
                await stream.send(head.encode())
                found = (await rest_of(stream)).split()[1]
            is_foreign = host != "127.0.0.1" and not target.lower().startswith(
                ("http://1", "https")
            )
            assert found == (b"400" if is_foreign else status)
