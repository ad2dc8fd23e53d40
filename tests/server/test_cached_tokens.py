"""`usage.prompt_tokens_details` of the edge: what an engine took from its cache. A real model."""

from __future__ import annotations

from typing import Any

import pytest

from anystreamer import open_engine
from anystreamer.demo import load_demo
from anystreamer.server import create_app

from ..helpers.remote_engines import behind_a_server
from ..helpers.serving import client_of, data_of, official, serving

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("asyncio_complains_of_nothing")]

PROMPT = "An increasing sequence: one,"
TEXT = "/v1/completions"


async def test_the_usage_says_how_many_tokens_were_cached() -> None:
    async with open_engine(*load_demo()) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:

            async def usage(**body: Any) -> Any:
                body = {"prompt": PROMPT, "max_tokens": 3, **body}
                response = await client.post(TEXT, json=body)
                if "stream" in body:
                    return data_of(response.text)[-2]["usage"]
                return response.json()["usage"]

            first = await usage()
            assert "prompt_tokens_details" not in first  # as before there was a cache
            tokens = first["prompt_tokens"]
            expected = {**first, "prompt_tokens_details": {"cached_tokens": tokens - 1}}
            assert await usage() == expected
            assert await usage(stream=True, stream_options={"include_usage": True}) == expected
            # A prompt counts once, however many answers there are.
            two = await usage(n=2)
            assert two["prompt_tokens_details"] == {"cached_tokens": tokens - 1}
        async with official(url) as openai:
            answer: Any = await openai.completions.create(
                model="anystreamer", prompt=PROMPT, max_tokens=3
            )
            assert answer.usage.prompt_tokens_details.cached_tokens == tokens - 1


async def test_a_remote_engine_reads_it() -> None:
    async with open_engine(*load_demo()) as engine, behind_a_server(engine) as remote:
        usages: list[Any] = []
        for _ in range(2):
            async with remote.stream_text(PROMPT, max_new_tokens=3) as stream:
                await stream.read()
            usages.append(stream.usage)
    assert [usage.cached_tokens for usage in usages] == [0, usages[0].prompt_tokens - 1]
