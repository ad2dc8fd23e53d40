"""Answers that try to fill a client's memory or to stall it, and what the client does with them.

As a program it prints a table: `python -m tests.helpers.hostile_answers`.
"""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import anyio
import openai

from .flooding_server import flooding_server
from .inside import worker_left
from .remote_engines import remote_engine
from .scripted import until
from .wire import HEAD, chunked, event, said

__all__ = ["ANSWERS", "HostileAnswer", "Outcome", "meet"]

# As large as one read of the client.
MUCH = 65536


@dataclass(frozen=True)
class HostileAnswer:
    """What the server sends."""

    first: bytes
    again: bytes = b""
    pause: float = 0.0
    logprobs: bool = False
    is_read: bool = True  # by the consumer
    error: type[Exception] = openai.APIError
    words: str = ""  # in the error


def _error(headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 500 No\r\n%stransfer-encoding: chunked\r\n\r\n" % headers


def _bombs(size: int) -> dict[str, HostileAnswer]:
    """Answers with *size* zeros, compressed by gzip to a thousandth."""
    zeros = chunked(gzip.compress(bytes(size), 9))
    heads = {"gzip": HEAD, "an error's gzip": _error()}
    return {
        name: HostileAnswer(
            head.replace(b"\r\n", b"\r\ncontent-encoding: gzip\r\n", 1) + zeros, words="gzip"
        )
        for name, head in heads.items()
    }


def _delta(**delta: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta}]})


def _call(arguments: str, **more: Any) -> bytes:
    return _delta(tool_calls=[{"function": {"arguments": arguments, **more}}])


def _many(data: bytes) -> bytes:
    return chunked(data * (MUCH // len(data)))


TOKEN = {"index": 0, "text": "", "logprobs": {"token_logprobs": [-1.0] * 100}}

ANSWERS = {
    "a line": HostileAnswer(HEAD + chunked(b"data: "), chunked(b"x" * MUCH), words="event_size"),
    "a comment": HostileAnswer(HEAD + chunked(b":"), chunked(b"x" * MUCH), words="event_size"),
    "an event": HostileAnswer(HEAD, _many(b"data: x\n"), words="event_size"),
    "empty lines of an event": HostileAnswer(HEAD, _many(b"data:\n"), words="event_size"),
    "headers": HostileAnswer(HEAD[:-2], b"x: y\r\n" * 10_000, words="cannot be reached"),
    "trailers": HostileAnswer(HEAD + b"0\r\n", b"x: y\r\n" * 10_000, words="closed"),
    "the size of a chunk": HostileAnswer(HEAD, b"0" * MUCH, words="closed"),
    "an error's body": HostileAnswer(
        _error(), chunked(b"x" * MUCH), error=openai.InternalServerError
    ),
    "an error's body, slowly": HostileAnswer(
        _error(), chunked(b"x"), 0.01, error=openai.InternalServerError
    ),
    **_bombs(2**26),  # to compress more takes seconds, at each import
    "arguments": HostileAnswer(
        HEAD + chunked(_call('{"', name="f")), chunked(_call("x" * 2000)), words="event_size"
    ),
    "short arguments": HostileAnswer(
        HEAD + chunked(_call('{"', name="f")), _many(_call("x", name="f")), words="answer_size"
    ),
    "tool calls": HostileAnswer(HEAD, _many(_call("{}", name="f")), words="tool calls"),
    "text": HostileAnswer(HEAD, _many(said("no end")), words="answer_size"),
    "text that is not read": HostileAnswer(
        HEAD, _many(said("x")), is_read=False, words="answer_size"
    ),
    "reasoning": HostileAnswer(
        HEAD, _many(_delta(reasoning_content="no end")), words="answer_size"
    ),
    "logprobs": HostileAnswer(
        HEAD, _many(event({"choices": [TOKEN]})), logprobs=True, words="answer_size"
    ),
}


@dataclass(frozen=True)
class Outcome:
    error: BaseException
    seconds: float
    stall: float  # seconds for which the loop did not run other tasks


async def meet(answer: HostileAnswer, timeout: Any, **options: Any) -> Outcome:
    """Read the answer with a remote engine."""
    stall = 0.0

    async def watch() -> None:
        nonlocal stall
        while True:
            before = perf_counter()
            await anyio.sleep(0.005)
            stall = max(stall, perf_counter() - before - 0.005)

    raised: BaseException = AssertionError("no error")
    with flooding_server(answer.first, answer.again, pause=answer.pause) as server:
        async with (
            remote_engine(server.url, **options) as engine,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(watch)
            started = perf_counter()
            try:
                async with engine.stream_text(
                    [{"role": "user", "content": "hi"}], timeout=timeout, logprobs=answer.logprobs
                ) as stream:
                    if not answer.is_read:
                        await until(lambda: worker_left(stream))
                    await stream.read()
            except Exception as exc:
                raised = exc
            seconds = perf_counter() - started
            tasks.cancel_scope.cancel()
            server.end_accept()
            await until(lambda: server.connection_closed)
    return Outcome(raised, seconds, stall)


def main(*names: str) -> None:
    """Print a row for each answer; each is read in a process of its own, for its memory."""
    if len(names) == 1:
        answers = ANSWERS | _bombs(2**30)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        got = anyio.run(meet, answers[names[0]], 5.0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(
            f"| {names[0]} | {grown / 1024:,.0f} | {got.seconds:.2f} | {got.stall * 1e3:.0f} "
            f"| {type(got.error).__name__}: {got.error!s:.90} |",
        )
        return
    print("| without end | MB more | seconds | loop held, ms | outcome |\n|---|---|---|---|---|")
    for name in names or ANSWERS:
        subprocess.run([sys.executable, "-m", __spec__.name, name], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
