"""`create_app`: an engine as an OpenAI-compatible application. Routes, keys and limits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from anyio import fail_after
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._engine import Engine
from .._generation import max_context_length, tokenizer_of
from .._streams import Timeouts, validate_timeouts
from .._text import response_template_of, validate_template
from ._asgi import check_keep_alive
from ._chat_page import page_routes
from ._completion_response import CompletionResponse, Limits
from ._errors import APIError
from ._metrics import Metrics
from ._openai_format import ChatCompletionBuilder, CompletionBuilder, TextCompletionBuilder
from ._request_models import ChatRequest, CompletionRequest, TextRequest, parsed

__all__ = ["create_app"]

BODY_SECONDS = 60.0  # for a client to send its request
DROPPED_BYTES = 1024 * 1024  # of a body that is too large


def create_app(
    engine: Engine,
    *,
    model_name: str = "anystreamer",
    api_key: str | None = None,
    max_body_bytes: int = 1024 * 1024,
    default_max_tokens: int = 1024,
    max_tokens_limit: int | None = None,
    context_length: int | None = None,
    keep_alive: float | None = 15.0,
    timeout: float | Timeouts | None = None,
    allow_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
    page: bool = True,
) -> Starlette:
    """An application of Starlette that answers as OpenAI's API does, from an open engine.

    It has ``POST /v1/chat/completions``, ``POST /v1/completions``, ``GET /v1/models``,
    ``GET /health`` and ``GET /metrics``, and at ``/`` a page to chat with the model. It can be
    mounted in another application of Starlette or FastAPI. A client that leaves stops the model,
    wherever its request is. A parameter that is not supported is refused by name.

    Args:
        engine: what `open_engine` gives, opened in the event loop that the server runs in.
        model_name: what clients know the model by. A request for another one is refused.
        api_key: what clients have to send as ``Authorization: Bearer ...``, for all but
            ``/health`` and the page, which asks its reader for it. None asks for none.
        max_body_bytes: how large a request may be.
        default_max_tokens: how many tokens an answer has at the most, where its request does not
            say.
        max_tokens_limit: how many a request may ask for; None leaves it to *context_length*.
        context_length: how many tokens the model takes, prompt and answer together. None asks the
            engine's model.
        keep_alive: send a comment whenever a stream was silent for so many seconds, as it is while
            the first token is awaited. None sends none.
        timeout: of each request, as `Engine.stream_text` has it.
        allow_origins: of pages of other sites that may use it from a browser, such as
            ``https://example.org``; ``*`` are all. By default there are none.
        allowed_hosts: the names that it may be asked for by, without ports. A server on this
            machine alone needs them: a page can give its own name this machine's address, and is
            then no other site to the browser. None does not look.
        page: whether there is a page.

    Raises:
        TypeError, ValueError: at once, for an argument that cannot work.
    """
    for name, number in (
        ("max_body_bytes", max_body_bytes),
        ("default_max_tokens", default_max_tokens),
        ("max_tokens_limit", max_tokens_limit),
        ("context_length", context_length),
    ):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    check_keep_alive(keep_alive)
    if api_key == "":
        raise ValueError("api_key is empty: None asks for none")
    for name, names in (("allow_origins", allow_origins), ("allowed_hosts", allowed_hosts)):
        if isinstance(names, str):
            raise TypeError(f"{name} must be several, as a list, not {names!r}")
    validate_timeouts(timeout)
    limits = Limits(
        default_max_tokens=default_max_tokens,
        max_tokens=max_tokens_limit,
        context=context_length or max_context_length(getattr(engine, "model", None)),
        keep_alive=keep_alive,
        timeout=timeout,
        response_template=_response_template_of(engine),
    )
    edge = _Endpoints(engine, model_name, api_key, max_body_bytes, limits)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", edge.chat_completions, methods=["POST"]),
            Route("/v1/completions", edge.completions, methods=["POST"]),
            Route("/v1/models", edge.models),
            Route("/v1/models/{name:path}", edge.model),
            Route("/health", edge.health),
            Route("/metrics", edge.metrics),
            *(page_routes() if page else ()),
        ],
        middleware=_middleware(allow_origins, allowed_hosts),
        exception_handlers={
            APIError: _api_error,
            HTTPException: _http_exception,
            Exception: _failed,
        },
    )


def _middleware(
    allow_origins: Sequence[str], allowed_hosts: Sequence[str] | None
) -> list[Middleware]:
    middleware = []
    if allowed_hosts is not None:
        middleware.append(
            Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts, www_redirect=False)
        )
    if allow_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=allow_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # the official client of browsers sends some of its own
                expose_headers=["retry-after"],
            )
        )
    return middleware


class _Endpoints:
    """The routes, and what they share."""

    def __init__(
        self,
        engine: Engine,
        model_name: str,
        api_key: str | None,
        max_body_bytes: int,
        limits: Limits,
    ) -> None:
        self._engine = engine
        self._model_name = model_name
        self._key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes
        self._limits = limits
        self._metrics = Metrics(engine)
        self._created = int(time.time())

    # -- the routes

    async def chat_completions(self, request: Request) -> Response:
        return await self._text(request, "chat_completions", ChatRequest, ChatCompletionBuilder)

    async def completions(self, request: Request) -> Response:
        return await self._text(request, "completions", CompletionRequest, TextCompletionBuilder)

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def health(self, request: Request) -> Response:
        state = getattr(self._engine, "state", "open")
        return JSONResponse({"status": state}, 200 if state == "open" else 503)

    async def metrics(self, request: Request) -> Response:
        self._check_key(request)
        return self._metrics.response(request.headers.get("accept", ""))

    # -- requests for text

    async def _text(
        self,
        request: Request,
        endpoint: str,
        kind: type[TextRequest],
        answer: type[CompletionBuilder],
    ) -> Response:
        ended = partial(self._metrics.ended, endpoint)
        try:
            self._check_key(request)
            asked = parsed(kind, await self._body(request))
            self._check_model(asked.model)
        except APIError as refused:
            ended(str(refused.status))
            raise
        except ClientDisconnect:
            ended("disconnected")
            return Response(status_code=400)  # which nobody gets
        new = answer(
            self._model_name, includes_usage=asked.includes_usage, top=asked.top_logprobs_asked
        )
        return CompletionResponse(self._engine, asked, new, self._limits, ended)

    async def _body(self, request: Request) -> bytes:
        # A page of another site may post a form or a text to a server on this machine without
        # asking; for JSON its browser asks first.
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise APIError("the content-type must be application/json", status=415)
        too_large = APIError(
            f"the body is larger than {self._max_body_bytes} bytes",
            status=413,
            code="request_too_large",
        )
        length = request.headers.get("content-length", "")
        # A client that is still sending when its connection is closed may never see the answer. So
        # what is a little too much is read, and dropped.
        most = self._max_body_bytes + DROPPED_BYTES
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        body = bytearray()
        seen = 0
        try:
            with fail_after(BODY_SECONDS):
                async for part in request.stream():
                    seen += len(part)
                    if seen <= self._max_body_bytes:
                        body += part
                    elif seen > most:
                        break
        except TimeoutError:
            raise APIError("the body took too long to come", status=408) from None
        if seen > self._max_body_bytes:
            raise too_large
        return bytes(body)

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # In constant time, so that it cannot be found out letter by letter.
        is_right = secrets.compare_digest(key.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not is_right:
            raise APIError(
                "a valid API key is needed, as Authorization: Bearer ...",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._model_name:
            raise APIError(
                f"the model {name[:200]!r} does not exist; there is {self._model_name!r}",
                param="model",
                status=404,
                code="model_not_found",
            )

    def _card(self) -> dict[str, object]:
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "anystreamer",
        }


def _response_template_of(engine: Engine) -> dict[str, Any] | None:
    """How answers of the engine's model are told apart from its reasoning and its tool calls.

    It has no field for calls where the chat template has no place for tools.
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
    """No such path, no such method: Starlette's own, as an error object."""
    assert isinstance(exc, HTTPException)
    return APIError(exc.detail, status=exc.status_code, headers=exc.headers).response()


async def _failed(request: Request, exc: Exception) -> Response:
    return APIError("the server failed", status=500, type="server_error").response()
