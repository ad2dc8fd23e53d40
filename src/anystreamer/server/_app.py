"""`create_app`: an engine as an OpenAI-compatible application. Routes, keys and limits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from anyio import fail_after, get_cancelled_exc_class
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._engine import Engine
from .._model import max_context_length
from .._prompts import UntrustedMessages, media_kinds, tokenizer_of
from .._serving import validate_allowed_hosts, validate_origins
from .._streams import TextStream, Timeouts, validate_timeouts
from .._text import response_template_of, validate_template
from .._workers import validate_count
from ._allowed_hosts import AllowedHosts
from ._body_sender import SendLimits
from ._chat_page import page_routes
from ._completion_response import CompletionResponse
from ._engine_response import Limits
from ._errors import APIError
from ._failures import Failures
from ._model_names import ModelNames
from ._observing import (
    Metrics,
    RequestIds,
    RequestLog,
    RequestSpans,
    note_end,
)
from ._openai_format import ChatCompletionBuilder, CompletionBuilder, TextCompletionBuilder
from ._origins import cross_origin
from ._request_body import BodyParser, RequestT
from ._request_models import ChatRequest, CompletionRequest, TextRequest
from ._request_target import AbsoluteTargets
from ._responses_api import ResponseBuilder, ResponsesRequest, ResponsesResponse

__all__ = ["create_app"]

BODY_SECONDS = 60.0  # for a client to send its request
DROPPED_BYTES = 1024 * 1024  # more than that, of a body that is too large, closes the connection

OnEnd = Callable[[str, list[TextStream]], None]  # called with a request's outcome and its answers


def create_app(
    engine: Engine,
    *,
    model_name: str = "anystreamer",
    aliases: Sequence[str] | None = None,
    api_key: str | None = None,
    max_body_bytes: int = 1024 * 1024,
    default_max_tokens: int = 1024,
    max_tokens_limit: int | None = None,
    context_length: int | None = None,
    keep_alive: float | None = 15.0,
    send_timeout: float | None = 30.0,
    max_unsent_tokens: int | None = 10_000,
    max_unsent_bytes: int | None = 4 * 1024 * 1024,
    timeout: float | Timeouts | None = None,
    allow_special_tokens: bool = False,
    allow_media_from: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
    page: bool = True,
) -> Starlette:
    """Make a Starlette application with OpenAI's API, which serves an open engine.

    It has ``POST /v1/chat/completions``, ``POST /v1/completions``, ``POST /v1/responses``,
    ``GET /v1/models``, ``GET /health`` and ``GET /metrics``, and at ``/`` a page to chat with the
    model. It can be mounted in another application of Starlette or FastAPI. If a client
    disconnects, the model stops, or the request leaves the queue. A field that is not supported
    gets an error that names it. ``app.state.metrics`` is the registry of prometheus_client that
    ``/metrics`` shows.

    Args:
        engine: an engine from `open_engine`, opened in the event loop that the server runs in.
        model_name: the model's name in requests and responses. A request for another one is
            refused with status 404; one that names no model gets this one.
        aliases: more names that requests can use for it. By default ``"dummy"``, which
            huggingface_hub's client sends if it knows only an address. The list of models does not
            have this name.
        api_key: the key that clients must send as ``Authorization: Bearer ...``, except for
            ``/health`` and the page, which asks its user for it. None needs no key.
        max_body_bytes: size limit of a request's body.
        default_max_tokens: token limit of an answer whose request sets none.
        max_tokens_limit: the highest token limit that a request can set. None: only
            *context_length* limits it.
        context_length: how many tokens the model takes, prompt and answer together. None reads it
            from the engine's model.
        keep_alive: send a comment after this many seconds without an event, as while the first
            token is awaited. None sends none. The headers go out with the first text or comment;
            until then an error has a status of its own.
        send_timeout: how many seconds a client can take to receive a part of its response. After
            that its connection is closed, and the model stops. None sets no limit.
        max_unsent_tokens: how many tokens can wait for a client that receives nothing. If more
            wait, its connection is closed, and the model stops. None sets no limit.
        max_unsent_bytes: the same for the parts of a response that were made from tokens.
        timeout: for each request, as in `Engine.stream_text`.
        allow_special_tokens: encode special tokens in the text of messages and tools as special
            tokens. By default they are ordinary text there, so that no text can begin a message of
            another role: see `UntrustedMessages`. In the prompt of ``/v1/completions``, special
            tokens are always special tokens.
        allow_media_from: hosts that pictures and recordings in messages are fetched from, as in
            `UntrustedMessages`. By default clients have to send the files themselves, in base64: if
            a server fetches any address, a client can reach machines that only the server can
            reach. Set *max_body_bytes* to the size of such files.
        allow_origins: sites whose pages can use the application from a browser, such as
            ``https://example.org``; ``*`` allows all, and ``null`` pages that are files. By default
            none can.
        allowed_hosts: host names that requests can use, without ports. Set them if the server is on
            loopback: any site can point its own host name to the address of loopback, and the
            browser then lets its pages send requests. None allows all.
        page: whether to serve the chat page.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    for name, number in (
        ("max_body_bytes", max_body_bytes),
        ("default_max_tokens", default_max_tokens),
        ("max_tokens_limit", max_tokens_limit),
        ("context_length", context_length),
    ):
        validate_count(name, number, 1)
    sending = SendLimits(
        keep_alive=keep_alive,
        timeout=send_timeout,
        max_unsent_tokens=max_unsent_tokens,
        max_unsent_bytes=max_unsent_bytes,
    )
    if api_key == "":
        raise ValueError("api_key is empty: for a server without a key pass None")
    if isinstance(aliases, str):
        raise TypeError(f"aliases must be a list of strings, got {aliases!r}")
    validate_origins(allow_origins)
    validate_allowed_hosts(allowed_hosts)
    validate_timeouts(timeout)
    limits = Limits(
        default_max_tokens=default_max_tokens,
        max_tokens=max_tokens_limit,
        context=context_length
        or getattr(engine, "context_length", None)
        or max_context_length(getattr(engine, "model", None)),
        sending=sending,
        timeout=timeout,
        allow_special_tokens=allow_special_tokens,
        allow_media_from=UntrustedMessages(allow_media_from=allow_media_from).allow_media_from,
        response_template=_response_template_of(engine),
    )
    modalities = ["text", *media_kinds(getattr(engine, "tokenizer", None))]
    model_names = ModelNames(model_name, aliases, modalities)
    endpoints = _Endpoints(engine, model_names, api_key, max_body_bytes, limits)
    app = Starlette(
        routes=[
            *(
                Route(each, endpoint, methods=["POST"], middleware=[Middleware(RequestSpans, path)])
                for path, endpoint in (
                    ("/v1/chat/completions", endpoints.chat_completions),
                    ("/v1/completions", endpoints.completions),
                    ("/v1/responses", endpoints.responses),
                )
                for each in (path, f"{path}/")
            ),
            *(
                Route(each, endpoint)
                for path, endpoint in (
                    ("/v1/models", endpoints.models),
                    ("/health", endpoints.health),
                    ("/metrics", endpoints.metrics),
                )
                for each in (path, f"{path}/")
            ),
            Route("/v1/models/{name:path}", endpoints.model),
            *(page_routes() if page else ()),
        ],
        middleware=_middleware(allow_origins, allowed_hosts),
        exception_handlers={
            APIError: _api_error,
            HTTPException: _http_exception,
        },
    )
    # A redirect names a scheme and a host. Behind a proxy, these are not the client's.
    app.router.redirect_slashes = False
    app.state.metrics = endpoints.metrics_registry
    return app


def _middleware(
    allow_origins: Sequence[str], allowed_hosts: Sequence[str] | None
) -> list[Middleware]:
    middleware = [Middleware(AbsoluteTargets), Middleware(RequestIds), Middleware(RequestLog)]
    if allow_origins:
        middleware.append(cross_origin(allow_origins))
    # These two send errors themselves. They are inside the middleware above, whose headers let
    # pages of other sites read the errors.
    middleware.append(Middleware(Failures))
    if allowed_hosts is not None:
        middleware.append(Middleware(AllowedHosts, allowed_hosts=allowed_hosts))
    return middleware


class _Endpoints:
    """The routes, and what they share."""

    def __init__(
        self,
        engine: Engine,
        names: ModelNames,
        api_key: str | None,
        max_body_bytes: int,
        limits: Limits,
    ) -> None:
        self._engine = engine
        self._names = names
        self._key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes
        self._parser = BodyParser()
        self._limits = limits
        numbers = {**limits.by_name(), "max_body_bytes": max_body_bytes}
        self._metrics = Metrics(engine, names.main, numbers)

    @property
    def metrics_registry(self) -> CollectorRegistry:
        """The registry with all metrics."""
        return self._metrics.registry

    # -- the routes

    async def chat_completions(self, request: Request) -> Response:
        return await self._text(request, "chat_completions", ChatRequest, ChatCompletionBuilder)

    async def completions(self, request: Request) -> Response:
        return await self._text(request, "completions", CompletionRequest, TextCompletionBuilder)

    async def responses(self, request: Request) -> Response:
        def new_response(parsed: ResponsesRequest, on_end: OnEnd) -> Response:
            builder = ResponseBuilder(
                self._names.main, parsed.settings, streams=parsed.streams, offered=parsed.offered
            )
            return ResponsesResponse(self._engine, parsed, builder, self._limits, on_end)

        return await self._answer(request, "responses", ResponsesRequest, new_response)

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": self._names.cards()})

    async def model(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse(self._names.card(request.path_params["name"]))

    async def health(self, request: Request) -> Response:
        state = getattr(self._engine, "state", "open")
        # `anystreamer serve` sets it when it has got a signal to end.
        if state == "open" and getattr(request.app.state, "is_draining", False):
            state = "draining"
        return JSONResponse({"status": state}, 200 if state == "open" else 503)

    async def metrics(self, request: Request) -> Response:
        self._check_key(request)
        extensions = request.scope.get("extensions", {})
        return self._metrics.response(request.headers.get("accept", ""), extensions)

    # -- requests for text

    async def _text(
        self,
        request: Request,
        endpoint: str,
        kind: type[TextRequest],
        new_builder: type[CompletionBuilder],
    ) -> Response:
        def new_response(parsed: TextRequest, on_end: OnEnd) -> Response:
            builder = new_builder(
                self._names.main,
                includes_usage=parsed.includes_usage,
                includes_running_usage=parsed.includes_running_usage,
                top=parsed.requested_top_logprobs,
                custom_tools=parsed.custom_tools,
            )
            return CompletionResponse(self._engine, parsed, builder, self._limits, on_end)

        return await self._answer(request, endpoint, kind, new_response)

    async def _answer(
        self,
        request: Request,
        endpoint: str,
        kind: type[RequestT],
        new_response: Callable[[RequestT, OnEnd], Response],
    ) -> Response:
        def on_end(outcome: str, answers: Sequence[TextStream] = ()) -> None:
            self._metrics.on_end(endpoint, outcome, answers)
            note_end(request.scope, outcome, answers)

        self._metrics.on_begin(endpoint)
        try:
            self._check_key(request)
            parsed = await self._parser.parse(kind, await self._body(request))
            self._names.check(parsed.model)
            response = new_response(parsed, on_end)
        except APIError as refused:
            on_end(str(refused.status))
            raise
        except ClientDisconnect:
            on_end("disconnected")
            return Response(status_code=400)  # nothing receives it
        except get_cancelled_exc_class():
            on_end("disconnected")  # Ray Serve cancels the request then
            raise
        except Exception:
            on_end("500")
            raise
        return response

    async def _body(self, request: Request) -> bytes:
        # A page of another site can post a form or plain text to a server on this machine without
        # permission. Before it posts JSON, the browser asks the server.
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise APIError("the content-type must be application/json", status=415)
        too_large = APIError(
            f"the body is larger than {self._max_body_bytes} bytes",
            status=413,
            code="request_too_large",
        )
        length = request.headers.get("content-length", "")
        # A client that is still sending when its connection is closed may never see the response.
        # So a body that is a little too large is read to its end, and dropped.
        limit = self._max_body_bytes + DROPPED_BYTES
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_large
        body = bytearray()
        received = 0
        try:
            with fail_after(BODY_SECONDS):
                async for part in request.stream():
                    received += len(part)
                    if received <= self._max_body_bytes:
                        body += part
                    elif received > limit:
                        break
        except TimeoutError:
            raise APIError(
                f"the body did not arrive within {BODY_SECONDS:.0f} seconds", status=408
            ) from None
        if received > self._max_body_bytes:
            raise too_large
        return bytes(body)

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # In constant time, so that the key cannot be guessed letter by letter.
        is_right = secrets.compare_digest(key.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not is_right:
            raise APIError(
                "a valid API key is needed: send it as Authorization: Bearer ...",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _response_template_of(engine: Engine) -> dict[str, Any] | None:
    """The template that separates answers of the engine's model from reasoning and tool calls.

    It has no field for tool calls if the chat template does not take tools.
    """
    own = getattr(engine, "tokenizer", None)
    if own is None:
        return None
    tokenizer = tokenizer_of(own)
    template = response_template_of(tokenizer, own)
    if template is None or not callable(getattr(tokenizer, "get_response_parser", None)):
        return None
    template = validate_template(tokenizer, own, template)
    assert template is not None
    chat_templates = [getattr(each, "chat_template", None) for each in (own, tokenizer)]
    if "tools" not in str(chat_templates):
        template["fields"].pop("tool_calls", None)
    return template


async def _api_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, APIError)
    return exc.response()


async def _http_exception(request: Request, exc: Exception) -> Response:
    """Starlette's own errors, such as an unknown path, as an error object."""
    assert isinstance(exc, HTTPException)
    return APIError(exc.detail, status=exc.status_code, headers=exc.headers).response()
