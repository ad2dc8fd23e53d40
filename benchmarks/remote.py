"""What the wire costs: an engine behind a server on loopback, beside the same one in this process.

    python benchmarks/remote.py [--quick] [--out benchmarks/results/remote.json]

The server is a process of its own, with the same model and continuous batching, on uvicorn. Each
round runs both, with 1, 8 and 32 requests at once on each loop, in an order that changes; figures
are medians over the rounds, with quartiles. What a token costs more is the difference of the times
that the same round took, divided by its tokens. The two do not work at the same time, but the
server's loop and this one do: they are two processes on two cores.
"""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
from argparse import SUPPRESS
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx2
import torch
from common import LOOPS, environment, options_of, quartiles, write
from models import TORCH_THREADS, make_model, make_tokenizer
from tables import show

import anystreamer
from anystreamer.cli.run_server import listening, run, url_of
from anystreamer.remote import open_remote_engine
from anystreamer.server import create_app

LAYERS, HIDDEN = 4, 128
STREAMS = (1, 8, 32)
TOKENS = 100
PROMPT = "word1 word2 word3 word4"
WAYS = ("local", "remote")


def engine() -> Any:
    torch.set_num_threads(TORCH_THREADS)
    return anystreamer.open_engine(
        make_model(LAYERS, HIDDEN), make_tokenizer(), batching="continuous"
    )


def serve() -> None:
    """Be the server, until the other process closes the pipe."""
    listener = listening("127.0.0.1", 0)
    anyio.run(
        lambda: run(
            engine(),
            lambda opened: create_app(opened, keep_alive=None),
            listener,
            "uvicorn",
            "asyncio",
            grace=1,
            ready=lambda: print(url_of(listener), flush=True),
            at_once=sys.exit,
        )
    )


async def go(opened: Any, streams: int) -> dict[str, float]:
    """Seconds of one go, and until the first tokens."""
    firsts: list[float] = []
    received = 0
    started = time.perf_counter()

    async def ask() -> None:
        nonlocal received
        async with opened.stream_text(PROMPT, max_new_tokens=TOKENS) as stream:
            async for piece in stream:
                if len(stream.text) == len(piece):
                    firsts.append(time.perf_counter() - started)
            assert stream.usage is not None
            received += stream.usage.completion_tokens

    async with anyio.create_task_group() as tasks:
        for _ in range(streams):
            tasks.start_soon(ask)
    seconds = time.perf_counter() - started
    assert received == streams * TOKENS, received
    return {
        "seconds": seconds,
        "tokens_per_second": received / seconds,
        "first_token_ms": 1000 * sorted(firsts)[len(firsts) // 2],
    }


async def one_loop(url: str, rounds: int, rng: random.Random) -> dict[str, Any]:
    client = httpx2.AsyncClient(trust_env=False, timeout=600)
    table: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        opened = {
            "local": await stack.enter_async_context(engine()),
            "remote": await stack.enter_async_context(
                open_remote_engine(url, "anystreamer", http_client=client)
            ),
        }
        for each in opened.values():
            for streams in STREAMS:
                await go(each, streams)  # to warm up
        for streams in STREAMS:
            told: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in rng.sample(WAYS, len(WAYS)):
                    gc.collect()
                    told[way].append(await go(opened[way], streams))
            pairs = list(zip(told["local"], told["remote"], strict=True))
            table[str(streams)] = {
                way: {
                    name: quartiles([each[name] for each in told[way]])
                    for name in ("tokens_per_second", "first_token_ms")
                }
                for way in WAYS
            } | {
                "ratio": quartiles(
                    [b["tokens_per_second"] / a["tokens_per_second"] for a, b in pairs]
                ),
                "more_per_token_us": quartiles(
                    [1e6 * (b["seconds"] - a["seconds"]) / (streams * TOKENS) for a, b in pairs]
                ),
            }
    return table


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--serve", action="store_true", help=SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    rounds = 3 if options.quick else 9
    rng = random.Random(0)
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            tables = {
                name: anyio.run(one_loop, url, rounds, rng, backend=backend, backend_options=kwargs)
                for name, (backend, kwargs) in LOOPS.items()
            }
        finally:
            server.terminate()
    results = {
        "environment": environment(options),
        "rounds": rounds,
        "tokens": TOKENS,
        "loops": tables,
    }
    write(results, options.out)
    show("remote", results)


if __name__ == "__main__":
    main()
