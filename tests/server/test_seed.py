"""A seed makes a request's answer reproducible, whatever else draws random numbers meanwhile."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import torch
from anyio import create_task_group

from anystreamer import open_engine
from anystreamer.demo import load_demo
from anystreamer.server import create_app

from ..helpers.scripted import PATIENCE
from ..helpers.serving import client_of, serving

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread_for_the_model")]

BODY = {"prompt": "Count", "max_tokens": 30, "temperature": 2, "seed": 7}


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_demo()


@asynccontextmanager
async def edge(model: Any, tokenizer: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            yield client


async def texts(client: httpx.AsyncClient, **body: Any) -> list[str]:
    answer = await client.post("/v1/completions", json={**BODY, **body})
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


async def test_each_choice_and_each_seed_has_its_own_text(demo: Any) -> None:
    async with edge(*demo) as client:
        one, two = await texts(client, n=2)
        assert [one, two] == await texts(client, n=2)
        assert one != two
        assert await texts(client, seed=8) == [two]
        assert await texts(client, seed=2**63 - 1) == await texts(client, seed=-1)


async def test_it_is_what_torch_draws_with_that_seed(demo: Any) -> None:
    model, tokenizer = demo
    inputs = tokenizer("Count", return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ids = model.generate(**inputs, max_new_tokens=30, do_sample=True, temperature=2.0)
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    async with edge(*demo) as client:
        assert await texts(client) == [expected]


@pytest.mark.parametrize(
    "body",
    [{}, {"top_p": 0.5}, {"logprobs": 2}, {"temperature": 0}, {"temperature": None}],
    ids=str,
)
async def test_others_that_draw_meanwhile_neither_disturb_nor_are_disturbed(
    demo: Any, body: dict[str, Any]
) -> None:
    """At each step somebody else takes a number from the generator of the process."""
    model, tokenizer = demo
    drawn: list[float] = []
    async with edge(model, tokenizer) as client:
        alone = await texts(client, **body)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            hook = model.register_forward_hook(lambda *_: drawn.append(torch.rand(1).item()))
            try:
                assert await texts(client, **body) == alone
            finally:
                hook.remove()
            torch.manual_seed(1)
            assert drawn == [torch.rand(1).item() for _ in drawn]


async def test_two_engines_draw_at_once(demo: Any) -> None:
    """They make each step together: the models wait for each other."""
    models = [demo, load_demo()]
    together = threading.Barrier(2, timeout=PATIENCE)
    async with edge(*models[0]) as first, edge(*models[1]) as second:
        alone = await texts(first)
        answers: list[list[str]] = []

        async def ask(client: httpx.AsyncClient) -> None:
            answers.append(await texts(client))

        def meet(*_: object) -> None:
            together.wait()

        with ExitStack() as hooks:
            for model, _ in models:
                hooks.callback(model.register_forward_hook(meet).remove)
            async with create_task_group() as tasks:
                tasks.start_soon(ask, first)
                tasks.start_soon(ask, second)
    assert answers == [alone, alone]
