"""One real model: in this process, behind a server of ours, `transformers serve` and Ray Serve."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import httpx
import pytest
from anyio import CancelScope, create_task_group
from transformers import ContinuousBatchingConfig

from anystreamer import Engine, FinishReason, open_engine
from anystreamer.demo import load_demo

from ..conftest import installed
from ..helpers.inside import is_idle
from ..helpers.remote_engines import behind_a_server, remote_engine
from ..helpers.scripted import PROGRAM_PATIENCE, PROGRAM_TIMEOUT, until
from ..helpers.warm_programs import start_program
from ..helpers.ways_out import (
    WayOut,
    cancelled_from_outside,
    each_of,
    leaving,
    stopped,
)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(PROGRAM_TIMEOUT),  # transformers serve starts within one of them
    pytest.mark.usefixtures("asyncio_complains_of_nothing", "one_thread_for_the_model"),
]

demo = cache(load_demo)
CONTINUOUS: dict[str, Any] = {
    "batching": "continuous",
    "continuous_batching_config": ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=256),
}
ENGINES = {
    "continuous": CONTINUOUS,
    "auto": {**CONTINUOUS, "batching": "auto"},
    "auto, alone": {**CONTINUOUS, "batching": "auto"},
}
PROMPT = "An increasing sequence: one,"


@cache
def expected(prompt: str, tokens: int) -> str:
    """What `generate()` makes of a prompt, all by itself."""
    model: Any
    model, tokenizer = demo()
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    ids = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


# Nobody reads what it says.
SERVE_QUIETLY = """
import os
for fd in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
from transformers.cli.transformers import main
main()
"""


@pytest.fixture(scope="module")
def transformers_serve() -> Iterator[tuple[str, str]]:
    """The address of a `transformers serve`, and what it calls the model."""
    if not installed("fastapi", "uvicorn", "openai"):
        pytest.skip("transformers serve needs fastapi, uvicorn and openai")
    model = str(files("anystreamer.demo") / "model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = ["serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = start_program("-c", SERVE_QUIETLY, *arguments, env=environment, joined=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PROGRAM_PATIENCE
        while True:
            assert process.poll() is None, "transformers serve has ended"
            assert time.monotonic() < deadline, "transformers serve does not answer"
            try:
                if httpx.get(f"{url}/health", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url, model
    finally:
        with process:
            process.kill()


# The cluster starts within the time of the first test. By day tests/test_ray.py asks its model.
RAY_MARKS = [pytest.mark.timeout(400), pytest.mark.variant]
RAY = [pytest.param("ray serve", marks=RAY_MARKS)] if installed("ray") else []
Computed = Callable[[], Awaitable[float]]


class Alone:
    """An engine with two lanes, whose batch serves none of these requests."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def stream_text(self, prompt: Any, **kwargs: Any) -> Any:
        return self._engine.stream_text(prompt, worker_context=contextlib.nullcontext, **kwargs)


# By day tests/engine/test_auto.py asks both lanes the same, and more.
AUTO = [pytest.param(name, marks=pytest.mark.variant) for name in ("auto", "auto, alone")]


@pytest.fixture(params=["none", "continuous", *AUTO, "remote", "transformers serve", *RAY])
def opened(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Opens the engine to use, with a function that waits until its model works on nothing.

    It returns how many tokens that has computed. None where nobody tells.
    """
    name = request.param
    if name == "transformers serve":
        url, model = request.getfixturevalue("transformers_serve")
    if name == "ray serve":
        cluster = request.getfixturevalue("cluster")

    @asynccontextmanager
    async def open_it() -> AsyncIterator[tuple[Engine, Computed | None]]:
        if name == "transformers serve":
            async with remote_engine(url, model) as engine:
                yield engine, None
            return
        if name == "ray serve":
            from ..helpers.two_nodes import idle

            replicas = [each["replica_id"] for each in cluster.do("replicas", number=2)]

            async def of_all() -> float:
                async with cluster.client() as client:
                    found = [await idle(client, replica) for replica in replicas]
                return sum(each["anystreamer_computed_tokens_total"] for each in found)

            before = await of_all()

            async def computed_there() -> float:
                return await of_all() - before

            async with remote_engine(cluster.url, "anystreamer-demo") as engine:
                yield engine, computed_there
            return

        async def computed() -> float:
            await until(lambda: is_idle(host))
            return float(host.statistics().computed_tokens)

        async with open_engine(*demo(), **ENGINES.get(name, {})) as local:
            host: Any = local
            if name == "auto, alone":
                yield Alone(local), computed  # type: ignore[misc]
            elif name != "remote":
                yield local, computed
            else:
                async with behind_a_server(local) as remote:
                    yield remote, computed

    return open_it


async def read(engine: Engine, prompt: Any, tokens: int, **kwargs: Any) -> Any:
    kwargs = {"max_new_tokens": tokens, "do_sample": False, **kwargs}
    async with engine.stream_text(prompt, **kwargs) as stream:
        await stream.read()
    return stream


async def test_the_text_is_that_of_generate(opened: Any) -> None:
    prompts = [PROMPT, "A decreasing sequence: nine,", "递增数列: 一, 二,"]
    told: dict[str, Any] = {}

    async def ask(prompt: str) -> None:
        told[prompt] = await read(engine, prompt, 24)

    async with opened() as (engine, _), create_task_group() as tasks:
        for prompt in prompts:
            tasks.start_soon(ask, prompt)
    for prompt, stream in told.items():
        # transformers serve loses a character that was cut off.
        assert stream.text.rstrip("\ufffd") == expected(prompt, 24).rstrip("\ufffd")
        assert stream.finish_reason in (FinishReason.LENGTH, FinishReason.EOS)
        assert stream.usage.completion_tokens <= 24
        assert stream.usage.prompt_tokens == len(demo()[1](prompt)["input_ids"])
        assert stream.timing.first_token is not None


async def test_a_chat_and_its_end(opened: Any) -> None:
    question = [{"role": "user", "content": "Count from two to four."}]
    async with opened() as (engine, _):
        stream = await read(engine, question, 60)
    assert stream.text == "two, three, four."
    assert stream.finish_reason is FinishReason.EOS
    assert stream.usage.completion_tokens >= 7


async def test_a_stop_string_never_leaks(opened: Any) -> None:
    async with opened() as (engine, _):
        stream = await read(engine, PROMPT, 900, stop=[" six", "nothing"])
    assert stream.text == " two, three, four, five,"
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert stream.stop_string == " six"


@each_of(cancelled_from_outside, leaving, stopped)
async def test_a_consumer_that_leaves_stops_the_model(opened: Any, way: WayOut) -> None:
    async with opened() as (engine, computed):
        for _ in range(3):
            with CancelScope() as scope:
                async with engine.stream_text(PROMPT, max_new_tokens=1900) as stream:
                    await stream.receive()
                    await way(stream, scope)
            right = expected(PROMPT, 24)
            assert stream.text.startswith(right[: len(stream.text)])
            reason = FinishReason.STOPPED if way is stopped else FinishReason.CANCELLED
            assert stream.finish_reason is reason
        if computed is not None:
            assert await computed() < 3 * 1000
        # transformers serve has one model for all, and lets nobody in before it has stopped.
        assert (await read(engine, PROMPT, 8)).text == " two, three, four, five,"
