"""HTTP/2, in which the client cannot stop an answer: it is refused, and the server stops."""

from __future__ import annotations

import openai
import pytest

from anystreamer import open_engine
from anystreamer.remote._http import httpx
from anystreamer.server import create_app
from anystreamer.testing import ScriptedModel

from ..helpers.remote_engines import remote_engine
from ..helpers.scripted import until
from ..helpers.serving import serving

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")


async def test_an_answer_over_http2_is_refused_and_ends() -> None:
    model = ScriptedModel(["word "] * 20_000, delay=0.001)
    async with open_engine(model, model.tokenizer) as engine:
        async with serving(create_app(engine), "hypercorn") as url:
            client = httpx.AsyncClient(http1=False, http2=True, trust_env=False)
            async with remote_engine(url, http_client=client) as remote:
                with pytest.raises(openai.APIResponseValidationError, match="without http2=True"):
                    async with remote.stream_text("Hi"):
                        pass
                await until(lambda: not engine.statistics().running)
    assert 0 < model.steps < 20_000
