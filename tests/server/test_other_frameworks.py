"""Django and BlackSheep beside a Starlette application, as its page says, and a Django view."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from anystreamer import Engine, open_engine
from anystreamer.server import TextStreamResponse
from anystreamer.testing import ScriptedModel

from ..conftest import installed
from ..helpers.frameworks import skip_without
from ..helpers.scripted import until
from ..helpers.serving import SERVERS, client_of, serving

# Both are for asyncio alone.
pytestmark = pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")])


def of_starlette(engine: Engine, *others: Mount) -> Starlette:
    async def say(request: Request) -> Response:
        return TextStreamResponse(lambda: engine.stream_text("Hi"))

    return Starlette(routes=[Route("/llm/say", say), *others])


def of_django(engine: Engine) -> Any:
    """With a view that holds a stream in its own generator."""
    if not installed("django"):
        skip_without("django")
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, StreamingHttpResponse
    from django.urls import clear_url_caches, path

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        async def chunks() -> AsyncIterator[str]:
            async with engine.stream_text("Hi") as stream:
                async for chunk in stream:
                    yield str(chunk)

        return StreamingHttpResponse(chunks(), content_type="text/plain")

    if not settings.configured:
        settings.configure(ROOT_URLCONF="urls_of_test", ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
        django.setup()
    urls = ModuleType("urls_of_test")
    urls.urlpatterns = [path("view", view)]  # type: ignore[attr-defined]
    sys.modules["urls_of_test"] = urls
    clear_url_caches()
    return of_starlette(engine, Mount("/", get_asgi_application()))


def of_blacksheep(engine: Engine) -> Any:
    if not installed("blacksheep"):
        skip_without("blacksheep")
    from blacksheep import Application

    app = Application()
    app.mount("/app", of_starlette(engine))
    return app


PLACES = {
    "Django, mounted": (of_django, "/llm/say"),
    "Django, its own view": (of_django, "/view"),
    "BlackSheep": (of_blacksheep, "/app/llm/say"),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("application", "path"), PLACES.values(), ids=PLACES)
async def test_who_leaves_stops_the_model(
    application: Callable[[Engine], Any], path: str, server: str
) -> None:
    model = ScriptedModel(["word "] * 20_000, delay=0.001)
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(application(engine), server, lifespan="off") as url:
            async with client_of(url) as client, client.stream("GET", path) as response:
                assert response.status_code == 200
                assert (await anext(response.aiter_text())).startswith("word")
            await until(lambda: not (model.is_generating or engine.statistics().running))
    assert model.steps < 20_000
