"""Clients of a server, in their own process: many at once, and one that disconnects.

They use plain sockets. Each notes when bytes come, and decodes them after the last one, because
decoding takes time from the server on the same two cores. No well-kept load generator fits here:
most measure requests and not events, GuideLLM and ``vllm bench serve`` decode while the server
works, and none sees when the model stops after a client has left.

TTFT, ITL and TPOT are those of ``vllm bench serve``, as docs/measured.md defines them. Chunks from
one read have no time between them. Tokens are counted by the usage in the answer, not by chunks.
Tokens per second are all tokens of a round divided by its time, from the first request to the end
of the last.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .method import Table

TOKENS = 100  # of an answer
# The requests of each client, one after the other, by the number of clients at once. A round with
# fewer is too short.
REQUESTS = {1: 10, 4: 4, 8: 2, 16: 2, 32: 2}
LONG = 1000  # tokens of the answer that a client leaves
STOPPED_AFTER = 1.0  # seconds without a step of the model


class Address(NamedTuple):
    """Of a server, and the file in which it counts its model's steps."""

    port: int
    steps: Path


# -- many at once


@dataclass
class Answer:
    """One answer: when its request was sent, when it ended, and when its chunks came."""

    sent: float
    ended: float
    chunks: list[float]
    tokens: int
    text: str

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.chunks[0] - self.sent)


Round = list[list[Answer]]  # by client, in their order


def figures_of(round_: Round) -> Table:
    """As defined above."""
    answers = [answer for answers in round_ for answer in answers]
    seconds = max(one.ended for one in answers) - min(one.sent for one in answers)
    tokens = sum(one.tokens for one in answers)
    gaps = [pairwise(one.chunks) for one in answers]
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_chunk": tokens / sum(len(one.chunks) for one in answers),
        # Of the requests that began together.
        "ttft_of_the_last_ms": max(one[0].ttft_ms for one in round_),
        "ttft_ms": [one.ttft_ms for one in answers],
        "itl_ms": [1e3 * (after - before) for pairs in gaps for before, after in pairs],
        "tpot_ms": [
            1e3 * (one.chunks[-1] - one.chunks[0]) / max(1, one.tokens - 1) for one in answers
        ],
    }


def load(server: Address, clients: int) -> Round:
    """Let that many clients begin together, and each send its next request after its answer."""

    async def client(number: int) -> list[Any]:
        return [await request(server.port, question(number)) for _ in range(REQUESTS[clients])]

    async def main() -> list[list[Any]]:
        return await asyncio.gather(*map(client, range(clients)))

    return [[decoded(*one) for one in answers] for answers in asyncio.run(main())]


def question(number: int, tokens: int = TOKENS, is_streamed: bool = True) -> Table:
    """A sequence that continues for ever. Ten clients have different ones."""
    numbers = "one two three four five six seven eight nine ten".split()
    prompt = f"An increasing sequence: {numbers[number % len(numbers)]},"
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "stream": is_streamed}
    return body | ({"stream_options": {"include_usage": True}} if is_streamed else {})


async def request(port: int, body: Table) -> tuple[float, list[tuple[float, bytes]]]:
    """When the request was sent, and what came when."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, parts = time.monotonic(), []
    writer.write(encoded(body))
    while part := await reader.read(2**16):
        parts.append((time.monotonic(), part))
    writer.close()
    return sent, parts


def encoded(body: Table) -> bytes:
    content = json.dumps(body)
    return (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n{content}"
    ).encode()


def decoded(sent: float, parts: list[tuple[float, bytes]]) -> Answer:
    answer = Answer(sent, parts[-1][0], [], 0, "")
    head, rest = b"".join(part for _, part in parts)[:12], b""
    assert head.endswith(b" 200"), parts
    for at, part in parts:  # both servers put whole events into each part of a chunked body
        *events, rest = (rest + part).split(b"\n\n")
        for event in events:
            _, found, data = event.partition(b"data: ")
            if not found or data == b"[DONE]":
                continue
            chunk = json.loads(data)
            answer.tokens = (chunk.get("usage") or {}).get("completion_tokens", answer.tokens)
            if text := "".join(choice["text"] for choice in chunk["choices"]):
                answer.chunks.append(at)
                answer.text += text
    assert answer.tokens == TOKENS
    return answer


# -- one that keeps its connection


def connected(port: int, timeout: float | None = None) -> closing[HTTPConnection]:
    return closing(HTTPConnection("127.0.0.1", port, timeout))


def whole_answer(connection: HTTPConnection, path: str, body: str = "") -> tuple[int, float]:
    """The status of an answer, and the milliseconds from the request to its last byte."""
    sent, headers = time.monotonic(), {"content-type": "application/json"}
    connection.request("POST" if body else "GET", path, body or None, headers)
    with connection.getresponse() as response:
        response.read()
    return response.status, 1e3 * (time.monotonic() - sent)


def kept_alive(server: Address, times: int) -> Table:
    """The time from a request to its whole answer of two tokens, on one connection."""
    body = json.dumps(question(0, 2, is_streamed=False))
    with connected(server.port) as connection:
        answers = [whole_answer(connection, "/v1/completions", body) for _ in range(times)]
    assert {status for status, _ in answers} == {200}
    return {"ms": [ms for _, ms in answers]}


# -- one that disconnects


def steps_in(path: str | Path) -> Any:
    """Two numbers that processes share: how many steps the model made, and when the last ended."""
    return np.memmap(path, "f8", "r+", shape=2)


def new_steps(path: Path) -> Path:
    path.write_bytes(bytes(16))
    return path


def count_steps(path: str | Path) -> None:
    """Let the Llamas of this process write down their steps."""
    from transformers import LlamaForCausalLM

    forward, steps = LlamaForCausalLM.forward, steps_in(path)

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        steps[1] = time.monotonic()  # one clock for all processes of the machine
        steps[0] += 1
        return output

    LlamaForCausalLM.forward = counted  # type: ignore[method-assign]


def leave(server: Address, is_streamed: bool) -> Table:
    """Disconnect in an answer: milliseconds until the model's last step ended, and its steps."""
    steps = steps_in(server.steps)
    before, received = steps[0], b""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(encoded(question(0, LONG, is_streamed)))
        while steps[0] < before + 20 or (is_streamed and received.count(b"data: ") < 10):
            if is_streamed:
                received += connection.recv(2**16)
            else:
                time.sleep(0.0005)
        left, made = time.monotonic(), steps[0]
    while time.monotonic() - max(left, steps[1]) < STOPPED_AFTER:
        time.sleep(0.01)
    return {"ms": [1e3 * max(0.0, float(steps[1]) - left)], "steps": [int(steps[0] - made)]}
