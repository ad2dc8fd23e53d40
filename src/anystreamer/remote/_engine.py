"""`open_remote_engine`: an engine on another server. Its requests, and their tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from time import perf_counter
from typing import Any

import openai
from anyio import CancelScope, move_on_after

from .._bridge import SafeEvent, StreamContext
from .._engine import BaseEngine, EngineContext, EngineTask
from .._errors import EngineBusy, GenerationTimeout, is_kind
from .._prompts import Prompt
from .._streams import GenerationSpan, GenerationState, TextStream, queue_deadline
from ._errors import request_error
from ._http import basic_authorization, guard, httpx, new_client
from ._limits import Limits
from ._reader import ResponseReader
from ._refusals import refusal
from ._request import NAME, RemoteRequest
from ._response import RemoteRow, ResponseParser

__all__ = ["open_remote_engine"]


def open_remote_engine(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    max_retries: int = 2,
    max_event_size: float = 2**20,
    max_answer_size: float = 2**25,
    **client_options: Any,
) -> EngineContext:
    """Use a model on a server, as `open_engine` uses a model of this process.

    The server is any that has OpenAI's API: vLLM, SGLang, TGI, ``transformers serve``,
    ``anystreamer serve``. Use it as ``async with open_remote_engine(url, name) as engine:``, and
    ``async with engine.stream_text(prompt) as stream:`` for each request. A `str` goes to
    ``/completions``, chat messages to ``/chat/completions``. A stop of the stream, in any way,
    closes its connection: then the server stops, too.

    docs/remote.md has a table that shows how the arguments of ``generate()`` are sent. Other
    arguments raise an error that names them. ``extra_body=`` is sent unchanged: use it for fields
    that a server has in addition to OpenAI's API.

    Differences: tokens have no ids here (``token_ids`` and ``prompt_token_ids`` are empty), and
    ``usage`` has the server's counts. It is None if the server sent none, for example after a stop.
    ``output`` is None. The engine's statistics count tokens when the server has sent their number,
    and ``between_tokens`` is the time from one chunk to the next.

    Args:
        base_url: of the API, usually with ``/v1`` at its end, which is added to a URL without a
            path.
        model: the name that the server has for the model.
        api_key: sent as ``Authorization: Bearer ...``; nothing is sent if it is None. A key or
            headers that the environment has for OpenAI's client are not sent.
        max_retries: how often a request is repeated if the server is busy, or the connection fails:
            after the seconds of the server's ``Retry-After``, or a growing pause. It is never
            repeated after its answer has begun.
        max_event_size: bytes of one event of an answer, and characters of the arguments of all its
            tool calls; `math.inf` for no limit.
        max_answer_size: bytes that an answer can take in memory: its characters, 128 for each piece
            of text that the server sends, and 32 for each log-probability. The default is enough
            for 250,000 tokens. A larger answer raises `openai.APIError`, after the text before it.
        client_options: further arguments for `openai.AsyncOpenAI`: ``default_headers``,
            ``http_client``, ``timeout`` (of one attempt to connect, read or write), ...

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    url = _url_of(base_url)
    limits = Limits(max_event_size, max_answer_size)
    if not isinstance(model, str):
        raise TypeError(f"model must be the name that the server has for it, got {model!r:.60}")
    # Without a key the client would take one from the environment. So it gets a key in any case,
    # and does not send it.
    names = {name.lower() for name in client_options.get("default_headers") or {}}
    has_no_key = api_key is None and "authorization" not in names
    headers: dict[str, Any] = {"Authorization": openai.omit} if has_no_key else {}
    headers["Accept-Encoding"] = "identity"  # a small compressed answer can be of any size
    if url.userinfo:  # the client would log it with the address
        headers["Authorization"] = basic_authorization(url)
        url = url.copy_with(userinfo=b"")
    options = {
        "base_url": url,
        "api_key": api_key or "none",
        "max_retries": max_retries,
        **client_options,
    }
    return _RemoteContext(lambda: RemoteEngine(_client(options), model, headers, limits))


def _client(options: dict[str, Any]) -> openai.AsyncOpenAI:
    """Make a client without the settings in the environment, which are for OpenAI's servers."""
    http_client = options.get("http_client") or new_client()
    client = openai.AsyncOpenAI(**{**options, "http_client": http_client})
    guard(http_client)
    client.organization = options.get("organization")
    client.project = options.get("project")
    # There is no public way to leave out the headers of OPENAI_CUSTOM_HEADERS.
    client._custom_headers = dict(options.get("default_headers") or {})
    return client


def _url_of(base_url: str) -> httpx.URL:
    """The URL of an API. Raises TypeError or ValueError if it is not one."""
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str, got {type(base_url).__name__}")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as exc:
        raise ValueError(f"base_url must be an http(s) URL, got {_shown(base_url)}: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url must begin with http:// or https://, got {_shown(base_url)}")
    return url.copy_with(path="/v1") if url.path in ("", "/") else url


def _shown(base_url: str) -> str:
    """A URL for a message, without the password that it can have."""
    return repr(re.sub(r"(?<=:)[^:/@]*(?=@)", "[hidden]", base_url))


class _RemoteContext(EngineContext):
    """The block that owns the connections."""

    _name = "open_remote_engine"

    async def _close(self, owner: BaseEngine, body: BaseException | None) -> BaseException | None:
        raised = await super()._close(owner, body)
        assert isinstance(owner, RemoteEngine)
        with CancelScope(shield=True):
            try:
                await owner.client.close()
            except BaseException as exc:
                raised = exc if raised is None else raised
        return raised


class RemoteEngine(BaseEngine):
    """Sends each request at once: requests wait on the server, and not here."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        headers: dict[str, Any],
        limits: Limits,
    ) -> None:
        super().__init__(math.inf, None)
        self.client = client
        self.model = model
        self.headers = headers  # of each request
        self.limits = limits  # of each answer
        self._closing = SafeEvent()

    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        request = RemoteRequest(self.model, prompt, arguments)
        return self.new_context(NAME, lambda: _Task(self, request))

    async def model_names(self) -> list[str]:
        """The names of the server's models. Raises `openai.APIError` if the request fails."""
        models = await self.client.models.list(extra_headers=self.headers)
        return [each.id for each in models.data]

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
    return GenerationState(request.options.max_buffer_size, span=span)


class _Task(EngineTask):
    """A request's task: sends it, and reads the answer. It counts as queued until the headers."""

    owner: RemoteEngine

    def __init__(self, engine: RemoteEngine, request: RemoteRequest) -> None:
        super().__init__(engine, NAME, _new_state(request))
        self._request = request
        self._response: httpx.Response
        self._row = RemoteRow(form=request.options.form)
        self.state.rows = [self._row]

    @property
    def is_watched(self) -> bool:
        # While it waits for the server, it does not see that its stream was stopped.
        return not self.state.has_exited

    def is_refusal(self, error: BaseException) -> bool:
        if is_kind(error, openai.APIStatusError):
            return bool(getattr(error, "status_code", 500) < 500)
        return is_kind(error, (EngineBusy, ValueError, TypeError))

    async def prepare(self) -> None:
        request, clock = self._request, self.state.clock
        seconds, phase = queue_deadline(request.options.timeouts, clock.elapsed(perf_counter()))
        with move_on_after(seconds) as waiting:
            try:
                # The raw response: the client's own stream leaves generators behind if it is not
                # read to its end, and drops fields that OpenAI's API does not have.
                response: Any = await self.owner.client.post(
                    request.path,
                    body=request.body,
                    options={"headers": self.owner.headers, "follow_redirects": False},
                    cast_to=httpx.Response,
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
                self._response = response
            except Exception as exc:
                failure = request_error(exc)
                raise failure from failure.__cause__
            if (wrong := await refusal(self._response)) is not None:
                raise wrong
        if waiting.cancelled_caught:
            raise GenerationTimeout(phase)

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        return aclosing(self._response), self.ticket

    async def work(self) -> None:
        request = self._request
        parser = ResponseParser(
            self._row,
            request.options.stop_strings,
            self.owner.limits,
            logprobs=request.options.logprobs,
            names_content=bool(request.options.parse_response),
        )
        if request.is_chat:
            self._row.answer = parser
        self.state.clock.set_deadlines(request.options.timeouts, perf_counter())
        try:
            await ResponseReader(self._response, parser, self.state, self.owner.limits).run()
        finally:
            if (usage := self._row.server_usage) is not None:
                self.owner.metrics.tokens(usage.completion_tokens, perf_counter(), None)
