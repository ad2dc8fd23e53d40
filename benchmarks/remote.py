"""What the wire costs: an engine behind a server on loopback, and the same one in this process."""

from __future__ import annotations

import gc
import time
from functools import partial
from statistics import median_high
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

import anystreamer
from anystreamer.remote import open_remote_engine

from .method import LOOPS, Parts, Table, compared, quartiles, served, take_turns
from .models import make_model, make_tokenizer

LAYERS, HIDDEN = 4, 128
STREAMS = (1, 8, 16, 32)
TOKENS = 100
PROMPT = "word1 word2 word3 word4"


def new_engine() -> Any:
    return anystreamer.open_engine(
        make_model(LAYERS, HIDDEN), make_tokenizer(), batching="continuous"
    )


async def turn(engine: Any, streams: int) -> Table:
    """The speed of one turn, and the time until a first token in the middle of them."""
    ended: list[Any] = []
    gc.collect()
    started = time.perf_counter()

    async def read() -> None:
        async with engine.stream_text(PROMPT, max_new_tokens=TOKENS) as stream:
            await stream.read()
        ended.append(stream)

    async with anyio.create_task_group() as tasks:
        for _ in range(streams):
            tasks.start_soon(read)
    seconds = time.perf_counter() - started
    received = sum(stream.usage.completion_tokens for stream in ended)
    assert received == streams * TOKENS, received
    return {
        "us_per_token": 1e6 * seconds / received,
        "tokens_per_second": received / seconds,
        "first_token_ms": median_high(1e3 * stream.timing.first_token for stream in ended),
    }


def compare(ways: dict[str, Any], rounds: int) -> Table:
    turns = take_turns(ways, rounds, warm_up=1)
    table = compared(turns, "tokens_per_second", local="local")
    pairs = zip(turns["local"], turns["remote"], strict=True)
    more = [remote["us_per_token"] - local["us_per_token"] for local, remote in pairs]
    return table | {"more_per_token_us": quartiles(more)}


def on_loop(loop: str, url: str, rounds: int) -> Table:
    backend, options = LOOPS[loop]
    client = httpx2.AsyncClient(trust_env=False, timeout=600)
    remote_engine = open_remote_engine(url, "anystreamer", http_client=client)
    with (
        start_blocking_portal(backend, options) as portal,
        portal.wrap_async_context_manager(new_engine()) as local,
        portal.wrap_async_context_manager(remote_engine) as remote,
    ):
        engines = {"local": local, "remote": remote}
        return {
            str(streams): compare(
                {way: partial(portal.call, turn, each, streams) for way, each in engines.items()},
                rounds,
            )
            for streams in STREAMS
        }


def measure(is_quick: bool) -> Parts:
    with served(new_engine, keep_alive=None) as (port, _):
        for loop in LOOPS:
            yield "wire", loop, on_loop(loop, f"http://127.0.0.1:{port}", 3 if is_quick else 9)
