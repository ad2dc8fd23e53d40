"""Exceptions that misbehave, from a client's own transport. No torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx2
import openai
import pytest

from anystreamer.remote import open_remote_engine

from ..helpers.misbehaving import MISBEHAVING, Frozen
from ..helpers.wire import said

# httpx itself replaces a frozen one, as contextlib does.
every_kind = pytest.mark.parametrize("kind", [each for each in MISBEHAVING if each is not Frozen])


class Failing(httpx2.AsyncBaseTransport):
    """Raises an exception: in place of an answer, or in the middle of it."""

    def __init__(self, error: BaseException, *, is_answering: bool) -> None:
        self.error = error
        self.is_answering = is_answering

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self.is_answering:
            raise httpx2.ConnectError("") from self.error
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=Body(self.error)
        )


class Body(httpx2.AsyncByteStream):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield said("one ")
        raise self.error


@every_kind
@pytest.mark.parametrize("is_answering", [False, True])
async def test_the_error_of_a_transport_arrives(
    kind: Callable[[], BaseException], is_answering: bool
) -> None:
    """Before the answer as the cause of a lost connection, and in its middle as it is."""
    error = kind()
    client = httpx2.AsyncClient(transport=Failing(error, is_answering=is_answering))
    caught: BaseException | None = None
    async with open_remote_engine(
        "http://127.0.0.1:1", "m", http_client=client, max_retries=0
    ) as engine:
        try:
            async with engine.stream_text("hi") as stream:
                await stream.read()
        except BaseException as exc:
            caught = exc
    if is_answering:
        assert caught is error
    else:
        assert type(caught) is openai.APIConnectionError
        assert caught.__cause__ is not None
        assert caught.__cause__.__cause__ is error
        assert "127.0.0.1 cannot be reached" in str(caught)
