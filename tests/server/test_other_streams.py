"""`TextStreamResponse` of streams that no model makes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from anystreamer import stream_iterable
from anystreamer.server import TextStreamResponse

from ..helpers.serving import events_of


@pytest.mark.parametrize("format", ["text", "sse"])
async def test_a_stream_of_strings_is_sent_to_its_end(format: Any) -> None:
    async def endpoint(request: Request) -> Response:
        return TextStreamResponse(lambda: stream_iterable(lambda: ["one ", "two"]), format)

    transport = httpx.ASGITransport(Starlette(routes=[Route("/", endpoint)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/")
    if format == "text":
        assert response.text == "one two"
        return
    *messages, (kind, end) = events_of(response.text)
    assert "".join(json.loads(data)["text"] for _, data in messages) == "one two"
    assert (kind, json.loads(end)) == ("end", {"finish_reason": None, "usage": None})
