"""What an open stream, and a token of it, cost the server without a model."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import psutil

from .clients import encoded
from .method import ON_ASYNCIO, Parts, Table, served, summary

STREAMS = 1_000
WARM = 50  # streams before the first look, so that what is allocated once is there
PROMPTS = (16, 4_000)  # tokens
STEP = 0.002
KEEP_ALIVE = 1.0  # seconds: then a stream that waits for its turn has its headers


def new_engine() -> Any:
    from anystreamer import open_engine
    from anystreamer.testing import ScriptedModel

    model = ScriptedModel(["word "] * 100_000, delay=STEP)
    return open_engine(model, model.tokenizer, max_waiting=10 * STREAMS)


def served_on(loop: str) -> Any:
    return served(new_engine, loop, context_length=1_000_000, keep_alive=KEEP_ALIVE)


def request_stream(port: int, prompt: str, tokens: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(encoded({"prompt": prompt, "stream": True, "max_tokens": tokens}))
    return client


def receive_head(client: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(4096)
    assert b" 200 " in head


def kib_of_each_stream(loop: str, prompt: int) -> float:
    with served_on(loop) as (port, process), ExitStack() as streams:
        server, resident = psutil.Process(process.pid), []
        for count in (WARM, STREAMS):
            clients = [request_stream(port, "x" * prompt, 100_000) for _ in range(count)]
            for client in clients:
                receive_head(streams.enter_context(client))
            resident.append(server.memory_info().rss)
        return float(resident[1] - resident[0]) / STREAMS / 1024


def cost_of_each_token(loop: str, tokens: int) -> Table:
    with served_on(loop) as (port, process):
        server, used, received = psutil.Process(process.pid), 0.0, b""
        for count in (50, tokens):  # the first one warms up
            before, received = sum(server.cpu_times()[:2]), b""
            with request_stream(port, "x", count) as client:
                while b"[DONE]" not in received:
                    received += client.recv(65_536)
            used = sum(server.cpu_times()[:2]) - before
        chunks = received.count(b"data: ") - 2  # without the finish reason and [DONE]
        return {"cpu_us_of_each_token": used / tokens * 1e6, "tokens_per_chunk": tokens / chunks}


def measure(is_quick: bool) -> Parts:
    rounds, tokens = (1, 1_000) if is_quick else (3, 3_000)
    for loop in ON_ASYNCIO:
        runs = [
            cost_of_each_token(loop, tokens)
            | {f"kib_of_{prompt}": kib_of_each_stream(loop, prompt) for prompt in PROMPTS}
            for _ in range(rounds)
        ]
        yield "each", loop, summary(runs)
