"""Exceptions that misbehave, in a server: clients get a status, and the log the error. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from anystreamer import open_engine
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.testing import ScriptedModel

from ..helpers.misbehaving import MISBEHAVING
from ..helpers.serving import client_of, serving

every_kind = pytest.mark.parametrize("kind", MISBEHAVING)


def refusal(kind: Callable[[], BaseException]) -> BaseException:
    """One that is taken for the client's fault."""
    bases: Any = (kind, ValueError)
    error: BaseException = type("Refusal", bases, {})()
    return error


@every_kind
@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_of_a_failing_model_gets_500(
    kind: Callable[[], BaseException], stream: bool
) -> None:
    model = ScriptedModel([kind()])
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            body = {"prompt": "Hi", "stream": stream}
            response = await client.post("/v1/completions", json=body)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the model failed"


@every_kind
async def test_the_client_of_a_refused_request_gets_400(kind: Callable[[], BaseException]) -> None:
    model = ScriptedModel([refusal(kind)])
    refusing = ScriptedModel([])
    error = refusal(kind)

    class Tokenizer(type(refusing.tokenizer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise error

    refusing.tokenizer.__class__ = Tokenizer
    async with (
        open_engine(model, model.tokenizer) as engine,
        open_engine(refusing, refusing.tokenizer) as second,
    ):

        async def text(request: Any) -> TextStreamResponse:
            return TextStreamResponse(lambda: engine.stream_text("Hi"))

        routes = [Route("/", text), Mount("/llm", create_app(second))]
        async with serving(Starlette(routes=routes)) as url, client_of(url) as client:
            response = await client.get("/")
            assert response.status_code == 400
            answer = await client.post("/llm/v1/completions", json={"prompt": "Hi"})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_value"
