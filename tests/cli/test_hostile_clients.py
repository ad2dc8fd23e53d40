"""All attacks at once, beside clients that behave well: each of their answers stays exact."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest

from anystreamer import Engine, open_engine
from anystreamer.cli.connection_limits import ConnectionLimits
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import until
from ..helpers.serving import LEFT_GENERATORS, SERVERS, client_of, data_of, limited_serving
from ..server.test_request_body import LARGE
from .test_connections import CHUNKED, GONE, HEAD, LINE, connected, deaf, request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("asyncio_complains_of_nothing"),
    pytest.mark.parametrize("server", SERVERS),
    LEFT_GENERATORS,
]

ANSWER = [f"{number} " for number in range(40)]
# The deadline of a head passes for some attackers. That of a response passes for nobody.
LIMITS = ConnectionLimits(max_connections=200, head_timeout=1.0, send_timeout=600.0)
WELL_BEHAVED = 4  # clients
# Of the server, its clients and its attackers together. One endless head could take 8 MiB.
TAKEN = 48 * 2**20  # bytes, at once
LEFT = 8 * 2**20  # bytes, in the end

ENDLESS_HEADS = {
    "request line": (b"GET /", b"x" * 1000),
    "headers": (LINE + b"host: 127.0.0.1\r\n", b"name: value\r\n" * 100),
    "chunk size": (CHUNKED, b"1" * 1000),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"name: value\r\n" * 100),
}
STREAMED = request({"stream": True, "max_tokens": 30})


async def endless_heads(url: str) -> None:
    for start, more in ENDLESS_HEADS.values():
        async with connected(url) as stream:
            with suppress(*GONE):
                await stream.send(start)
                while True:
                    await stream.send(more)


async def half_heads(url: str) -> None:
    async with connected(url), connected(url) as stream:
        with suppress(*GONE, anyio.EndOfStream):
            await stream.send(b"GET / HTTP/1.1\r\nhost: ")
            await stream.receive()


async def bytes_behind(url: str) -> None:
    for behind in (b"x", request({}) * 20):
        async with connected(url) as stream:
            with suppress(*GONE, anyio.EndOfStream):
                await stream.send(STREAMED + behind)
                await stream.receive()


async def floods_behind(url: str) -> None:
    async with connected(url) as stream:
        with suppress(*GONE):
            await stream.send(STREAMED)
            for _ in range(100):
                await stream.send(b"x" * 10_000)


async def leaving(url: str) -> None:
    async with connected(url) as stream:
        with suppress(*GONE, anyio.EndOfStream):
            await stream.send(STREAMED)
            await stream.receive()


async def deaf_ones(url: str) -> None:
    with deaf(url) as client:
        client.send(STREAMED)
        await anyio.sleep(0.2)


async def large_bodies(url: str) -> None:
    for body in LARGE.values():
        head = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        async with connected(url) as stream:
            with suppress(*GONE, anyio.EndOfStream):
                await stream.send(head + body)
                while True:
                    await stream.receive()


ATTACKS: list[Callable[[str], Awaitable[None]]] = [
    endless_heads,
    half_heads,
    bytes_behind,
    floods_behind,
    leaving,
    deaf_ones,
    large_bodies,
]


class Client:
    """One that behaves well, and sends a request again where it was cut off before the response.

    A busy machine can be so slow that the deadline of a head passes for this client, too. Earlier
    than that, nothing cuts it off.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._earlier = self._latest = anyio.current_time()  # requests

    async def ask(self, *, stream: bool) -> str:
        body = {"prompt": "Hi", "max_tokens": len(ANSWER), "stream": stream}
        status, text = await self._post(body)
        while status == 503:  # there is no place in the queue just now
            await anyio.sleep(0.05)
            status, text = await self._post(body)
        assert status == 200, text
        if not stream:
            return str(json.loads(text)["choices"][0]["text"])
        *chunks, done = data_of(text)
        assert done == "[DONE]"
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    async def _post(self, body: dict[str, Any]) -> tuple[int, str]:
        # Of a connection that is kept, the deadline begins when the request before it has ended.
        self._earlier, self._latest = self._latest, anyio.current_time()
        request = self._http.build_request("POST", "/v1/completions", json=body)
        while True:
            try:
                response = await self._http.send(request, stream=True)
                break
            except (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError):
                assert anyio.current_time() - self._earlier >= LIMITS.head_timeout
        try:
            return response.status_code, (await response.aread()).decode()
        finally:
            await response.aclose()


async def attack_and_ask(url: str, engine: Engine, answers: int) -> None:
    attacked = dict.fromkeys(ATTACKS, 0)

    async def attack(how: Callable[[str], Awaitable[None]]) -> None:
        while True:
            with suppress(OSError):  # a connection that is one too many
                await how(url)
                attacked[how] += 1

    async def behave() -> None:
        async with client_of(url, timeout=None) as http:
            client = Client(http)
            for number in range(answers):
                assert await client.ask(stream=bool(number % 2)) == "".join(ANSWER)

    async with anyio.create_task_group() as attacks:
        for how in ATTACKS:
            attacks.start_soon(attack, how)
        async with anyio.create_task_group() as clients:
            for _ in range(WELL_BEHAVED):
                clients.start_soon(behave)
        await until(lambda: all(attacked.values()))
        attacks.cancel_scope.cancel()
    await until(lambda: not (engine.statistics().running or engine.statistics().waiting))
    async with client_of(url) as client:
        assert (await client.get("/health")).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'outcome="failed"' not in metrics


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(3, marks=pytest.mark.timeout(400)),
        pytest.param(1000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
    ],
)
async def test_attacks_do_not_change_the_answers_of_others(server: str, answers: int) -> None:
    """Then nothing runs, and little memory was taken."""
    model = ScriptedModel(ANSWER, delay=0.0002)
    tracemalloc.start()
    try:
        async with open_engine(model, model.tokenizer, max_waiting=100) as engine:
            app = create_app(engine, context_length=10**5, send_timeout=LIMITS.send_timeout)
            async with limited_serving(app, server, LIMITS, send_buffer=4096) as url:
                await attack_and_ask(url, engine, answers)
        model.calls.clear()
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < LEFT
    assert peak < TAKEN
