"""`open_remote_engine`: an engine that is a server elsewhere. Its requests, and their tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from time import perf_counter
from typing import Any

import httpx2
import openai
from anyio import CancelScope, move_on_after

from .._bridge import SafeEvent, StreamContext
from .._engine import BaseEngine, EngineContext, EngineTask, RequestContext
from .._errors import GenerationTimeout
from .._generation import Prompt
from .._streams import GenerationSpan, GenerationState, TextStream, queue_deadline
from ._errors import to_public_error
from ._reader import ResponseReader
from ._request import NAME, RemoteRequest
from ._response import RemoteRow, ResponseParser

__all__ = ["open_remote_engine"]

EVENT_STREAM = "text/event-stream"


def open_remote_engine(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    max_retries: int = 2,
    **client_options: Any,
) -> EngineContext:
    """Use a model that a server has, as `open_engine` uses one of this process.

    The server is any that speaks as OpenAI's API does: vLLM, SGLang, TGI, ``transformers serve``,
    ``anystreamer serve``. Use it as ``async with open_remote_engine(url, name) as engine:``, and
    ``async with engine.stream_text(prompt) as stream:`` for each request. A `str` goes to
    ``/completions``, chat messages to ``/chat/completions``. Whatever stops the stream closes its
    connection, by which the server knows that it should stop.

    How ``generate()``'s arguments are sent is told in docs/remote.md; what cannot be is refused by
    name. ``extra_body=`` takes what a server has beside OpenAI's API, as it is sent.

    What is different: tokens have no ids here (``token_ids`` and ``prompt_token_ids`` are empty),
    and ``usage`` is what the server counted: None where it did not tell, as after a stop.
    ``output`` is None. In the engine's statistics tokens count once the server has told their
    number, and ``between_tokens`` is from one piece to the next.

    Args:
        base_url: of the API, mostly with ``/v1`` at its end, which is added to an address that has
            no path.
        model: what the server knows the model by.
        api_key: sent as ``Authorization: Bearer ...``. None sends none. What the environment has
            for OpenAI's client, such as a key or headers, is not sent.
        max_retries: how often a request is made again that was refused for now, or never answered:
            after as many seconds as the server's ``Retry-After`` says, or a growing pause. None
            is made again once its answer has begun.
        client_options: further arguments for `openai.AsyncOpenAI`: ``default_headers``,
            ``http_client``, ``timeout`` (of one attempt to connect, read or write), ...

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    url = _address_of(base_url)
    if not isinstance(model, str):
        raise TypeError(f"model must be the name that the server has for it, not {model!r:.60}")
    # Without a key the client would take one from the environment: it is given one, and not to
    # send it.
    names = {name.lower() for name in client_options.get("default_headers") or {}}
    is_open = api_key is None and "authorization" not in names
    headers = {"Authorization": openai.omit} if is_open else {}
    options = {
        "base_url": url,
        "api_key": api_key or "none",
        "max_retries": max_retries,
        **client_options,
    }
    return _RemoteContext(lambda: RemoteEngine(_client(options), model, headers))


def _client(options: dict[str, Any]) -> openai.AsyncOpenAI:
    """Make a client. What it takes from the environment is for OpenAI, and goes to nobody else."""
    client = openai.AsyncOpenAI(**options)
    client.organization = options.get("organization")
    client.project = options.get("project")
    client._custom_headers = dict(options.get("default_headers") or {})
    return client


def _address_of(base_url: str) -> httpx2.URL:
    """The address of an API. Raises TypeError or ValueError if it is none."""
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str, not {type(base_url).__name__}")
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as exc:
        raise ValueError(f"base_url {base_url!r} is no address: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
    return url.copy_with(path="/v1") if url.path in ("", "/") else url


class _RemoteContext(EngineContext):
    """The block that owns the connections."""

    _name = "open_remote_engine"

    async def _leave(self, body: BaseException | None) -> BaseException | None:
        raised = await super()._leave(body)
        engine = self._engine
        assert isinstance(engine, RemoteEngine)
        with CancelScope(shield=True):
            try:
                await engine.client.close()
            except BaseException as exc:
                raised = exc if raised is None else raised
        return raised


class RemoteEngine(BaseEngine):
    """Sends each request to the server at once: the line is there."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, headers: dict[str, Any]) -> None:
        super().__init__(math.inf, None)
        self.client = client
        self.model = model
        self.headers = headers  # of each request
        self._closing = SafeEvent()

    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        request = RemoteRequest.of(self.model, prompt, arguments)
        return RequestContext(self, NAME, lambda: _Task(self, request))

    async def _run(self) -> None:
        self.ready.set()
        await self._closing.wait()

    def _wake(self) -> None:
        self._closing.set()


def _new_state(request: RemoteRequest) -> GenerationState:
    span = GenerationSpan.start(
        "chat" if request.is_chat else "text_completion",
        request.model,
        lambda: request.settings,
        provider="openai",
    )
    return GenerationState(request.max_buffer_size, span=span)


class _Task(EngineTask):
    """A request's task: sends it, and reads the answer. It waits for its turn until the headers."""

    def __init__(self, engine: RemoteEngine, request: RemoteRequest) -> None:
        super().__init__(engine, NAME, _new_state(request))
        self._engine = engine
        self._request = request
        self._response: httpx2.Response
        self._row = RemoteRow()
        self.state.rows = [self._row]

    @property
    def is_watched(self) -> bool:
        return not self.state.has_exited  # the wire tells it nothing

    async def prepare(self) -> None:
        request, clock = self._request, self.state.clock
        seconds, phase = queue_deadline(request.timeouts, clock.elapsed(perf_counter()))
        with move_on_after(seconds) as waiting:
            try:
                # The response as it is: the client's own stream cannot be left in the middle
                # without leaving generators behind, and loses what a server has of its own.
                response: Any = await self._engine.client.post(
                    request.path,
                    body=request.body,
                    options={"headers": self._engine.headers},
                    cast_to=httpx2.Response,
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
                self._response = response
            except Exception as exc:
                failure = to_public_error(exc, None, is_answering=False)
                raise failure from failure.__cause__
        if waiting.cancelled_caught:
            raise GenerationTimeout(phase)
        media_type = self._response.headers.get("content-type", "").partition(";")[0].strip()
        if media_type.lower() != EVENT_STREAM:
            await self._response.aclose()
            raise openai.APIResponseValidationError(
                self._response,
                None,
                message=f"{self._response.url} is no stream of events: it answered with "
                f"{media_type or 'no content-type'}",
            )

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        return aclosing(self._response), self.ticket

    async def work(self) -> None:
        request = self._request
        parser = ResponseParser(
            self._row,
            request.stop_strings,
            logprobs=request.logprobs,
            names_content=bool(request.parse_response),
        )
        if request.is_chat:
            self._row.answer = parser
        self.state.clock.set_deadlines(request.timeouts, perf_counter())
        try:
            await ResponseReader(self._response, parser, self.state).run()
        finally:
            if (usage := self._row.server_usage) is not None:
                self._engine.metrics.tokens(usage.completion_tokens, perf_counter(), None)
