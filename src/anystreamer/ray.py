"""The server as a Ray Serve application: one engine in each replica, on any number of machines.

serve run anystreamer.ray:app model=Qwen/Qwen3-0.6B max_running=32
"""

# Without `from __future__ import annotations`: Serve reads the annotation of app() itself.

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, Self

from anyio import create_task_group, sleep, to_thread

from ._installing import to_install as _to_install

try:
    from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator
    from ray import serve
    from ray.serve.metrics import Gauge
    from starlette.applications import Starlette
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as _missing:
    raise ImportError(
        f"anystreamer.ray needs Ray Serve ({_missing}): {_to_install('ray')}"
    ) from _missing

from . import Engine, UntrustedMessages, open_engine
from ._engine import MAX_RUNNING as _MAX_RUNNING
from ._loading import load_model, shown_name
from ._serving import (
    CANCELS_ON_DISCONNECT,
    LogLevel,
    RequestLogFormat,
    validate_allowed_hosts,
    validate_origins,
    write_logs,
)
from .server import create_app

__all__ = ["Settings", "app", "application", "error_objects"]

# How long a refused client should wait before it tries again (seconds).
_RETRY_AFTER = 1
# How often a replica copies its metrics to Ray (seconds).
_METRICS_INTERVAL = 5.0
# How much of an error of Serve's is read (bytes).
_MAX_ERROR = 64 * 1024
# The response to a request whose replica has died before it answered: Serve itself sends none.
_DIED: Message = {"type": "http.response.start", "status": 500, "headers": []}
_DIED_TEXT = b"the replica has died before it answered: send the request again"


class Settings(BaseModel, extra="forbid"):
    """The model that a replica serves, and its limits. See `anystreamer.server.create_app`.

    Each is an argument of the application: ``serve run anystreamer.ray:app max_running=32``,
    or ``args:`` in a config file.
    """

    model: str | None = None  #: a folder or a hub id; by default the embedded model
    model_name: str | None = None  #: the model's name in requests and responses
    #: more names for requests, as in `anystreamer.server.create_app`
    aliases: list[str] | None = None
    batching: Literal["none", "continuous", "auto"] = "auto"  #: as in `anystreamer.open_engine`
    #: how many requests run at once, with continuous batching
    max_running: PositiveInt | None = None
    #: how many requests can wait at each of Serve's proxies; others get status 503
    max_waiting: PositiveInt = 100
    #: the key that clients must send; by default ``ANYSTREAMER_API_KEY`` of the environment, if set
    api_key: str | None = Field(
        default_factory=lambda: os.environ.get("ANYSTREAMER_API_KEY") or None, repr=False
    )
    max_body_bytes: PositiveInt = 1024 * 1024  #: size limit of a request's body
    default_max_tokens: PositiveInt = 1024  #: token limit of an answer whose request sets none
    max_tokens_limit: PositiveInt | None = None  #: the highest token limit that a request can set
    context_length: PositiveInt | None = None  #: as in `anystreamer.open_engine`
    #: seconds without text until a comment is sent; null sends none
    keep_alive: PositiveFloat | None = 15.0
    send_timeout: PositiveFloat | None = 30.0  #: seconds for a client to take a part of its answer
    max_unsent_tokens: PositiveInt | None = 10_000  #: that wait for a client that takes nothing
    #: bytes, made from tokens, that wait for a client that takes nothing
    max_unsent_bytes: PositiveInt | None = 4 * 1024 * 1024
    page: bool = True  #: whether to serve the chat page
    #: seconds for a request, once it has reached a replica; null sets no limit
    timeout: PositiveFloat | None = 600.0
    #: let special tokens in the text of messages be special tokens, not text
    allow_special_tokens: bool = False
    #: hosts that pictures and recordings in messages are fetched from
    allow_media_from: list[str] = []
    #: sites whose pages can use the server from a browser, as in `anystreamer.server.create_app`
    allow_origins: list[str] = []
    allowed_hosts: list[str] | None = None  #: host names that requests can use
    device: str = "auto"  #: where the model runs, as in `anystreamer.load_model`
    dtype: str = "auto"  #: of its weights, as in `anystreamer.load_model`
    #: of its weights, as in `anystreamer.load_model`
    quantization: Literal["8bit", "4bit"] | None = None
    chat_template: str | None = None  #: a template, or a file with one, in place of the model's own
    trust_remote_code: bool = False  #: run Python code that comes with the model
    #: the lowest level of what a replica logs
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    request_log: Literal["off", "text", "json"] = "off"  #: log each request, as text or as JSON

    @model_validator(mode="after")
    def _checked(self) -> Self:
        """Refuse at once what each replica would refuse later."""
        validate_origins(self.allow_origins)
        validate_allowed_hosts(self.allowed_hosts)
        UntrustedMessages(allow_media_from=self.allow_media_from)
        if self.batching == "none" and self.max_running not in (None, 1):
            raise ValueError(
                f"max_running={self.max_running} needs batching=auto or continuous: without it one "
                "request runs at a time"
            )
        return self

    def running(self) -> int:
        """How many requests a replica runs at once."""
        if self.batching == "none":
            return 1
        return (self.max_running or _MAX_RUNNING) + (self.batching == "auto")


@serve.ingress()
class _Replica:
    """A model, an engine that lives as long as the replica, and the application."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: Engine

    def __serve_build_asgi_app__(self) -> Starlette:
        replica = serve.get_replica_context().replica_id.unique_id
        return Starlette(lifespan=self._serving, middleware=[Middleware(_Named, replica=replica)])

    @asynccontextmanager
    async def _serving(self, outer: Starlette) -> AsyncIterator[None]:
        """Own the engine: Starlette enters this before the first request, and leaves it at the end.

        It runs in a task of its own.
        """
        settings = self._settings
        write_logs(
            LogLevel(settings.log_level),
            RequestLogFormat(settings.request_log),
            sys.__stderr__,  # Serve replaces sys.stderr: each line would become a record of its log
        )
        model, tokenizer = await to_thread.run_sync(
            partial(
                load_model,
                settings.model,
                device=settings.device,
                dtype=settings.dtype,
                quantization=settings.quantization,
                chat_template=settings.chat_template,
                trust_remote_code=settings.trust_remote_code,
            )
        )
        async with open_engine(
            model,
            tokenizer,
            batching=settings.batching,
            max_running=settings.max_running,
            context_length=settings.context_length,
        ) as self._engine:
            inner = create_app(
                self._engine,
                model_name=settings.model_name or shown_name(settings.model),
                aliases=settings.aliases,
                api_key=settings.api_key,
                max_body_bytes=settings.max_body_bytes,
                default_max_tokens=settings.default_max_tokens,
                max_tokens_limit=settings.max_tokens_limit,
                context_length=settings.context_length,
                keep_alive=settings.keep_alive,
                send_timeout=settings.send_timeout,
                max_unsent_tokens=settings.max_unsent_tokens,
                max_unsent_bytes=settings.max_unsent_bytes,
                page=settings.page,
                timeout=settings.timeout,
                allow_special_tokens=settings.allow_special_tokens,
                allow_media_from=settings.allow_media_from,
                allow_origins=settings.allow_origins,
                allowed_hosts=settings.allowed_hosts,
            )
            outer.mount("/", inner)
            async with create_task_group() as tasks:
                tasks.start_soon(_export_metrics, inner.state.metrics)
                yield
                tasks.cancel_scope.cancel()

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica if this raises: its engine has died."""
        state = getattr(self._engine, "state", "open")
        if state != "open":
            raise RuntimeError(f"the engine is {state}: this replica has to be replaced")


def app(settings: Settings) -> Any:
    """Build the application, for ``serve run`` and Serve's config files."""
    return application(settings)


def application(settings: Settings, **options: Any) -> Any:
    """Build the application, for `ray.serve.run`.

    A replica gets as many requests as it runs at once. The others wait in Serve's own queue, where
    the next free replica takes them, and where Serve's autoscaling sees them.

    Args:
        settings: the settings of each replica.
        options: options of Serve's deployments, such as ``num_replicas=2`` and
            ``ray_actor_options={"num_gpus": 1}``.
    """
    return (
        serve.deployment(_Replica, name="anystreamer")
        .options(
            max_ongoing_requests=settings.running(),
            max_queued_requests=settings.max_waiting,
            backpressure_config={"retry_after_s": _RETRY_AFTER},
        )
        .options(**options)
        .bind(settings)
    )


class _Named:
    """Middleware that names the replica in each response: each has a log and metrics of its own.

    It also tells the application that Serve cancels a request's task when the client disconnects.
    """

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-replica"] = self._replica
                del headers["x-request-id"]  # the proxy adds it again
            await send(message)

        extensions = {**scope.get("extensions", {}), CANCELS_ON_DISCONNECT: {}}
        await self._app({**scope, "extensions": extensions}, receive, named)


# -- metrics


async def _export_metrics(registry: Any) -> None:
    """Copy a replica's metrics to Ray, again and again: each node exports them to Prometheus.

    A request for ``/metrics`` reaches only one replica, whichever is free. Ray adds the labels
    ``replica``, ``deployment`` and ``application``.
    """
    gauges: dict[str, Gauge] = {}
    while True:
        for family in registry.collect():
            if not family.name.startswith("anystreamer"):  # Ray has its own metrics of processes
                continue
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                if sample.name not in gauges:
                    gauges[sample.name] = Gauge(
                        sample.name, description=family.documentation, tag_keys=tuple(sample.labels)
                    )
                # Counters and histograms, too: rate() and histogram_quantile() read their values.
                gauges[sample.name].set(sample.value, tags=sample.labels)
        await sleep(_METRICS_INTERVAL)


# -- errors of Serve's own


def error_objects() -> list[Middleware]:
    """Let Serve's proxies send OpenAI's error object where they refuse a request themselves.

    They refuse one when their queue is full, when no replica runs, or when its replica has died
    before it answered. To turn this on, set the environment variable
    ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` to ``anystreamer.ray:error_objects`` where Ray is
    started, on each node with a proxy. Responses of replicas are left as they are.
    """
    return [Middleware(_ErrorObjects)]


class _ErrorObjects:
    """Middleware of a proxy: turns an error that is a line of text into an error object."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        head: Message | None = None  # of an error of the proxy's own
        text = b""
        has_begun = False

        async def changed(message: Message) -> None:
            nonlocal head, text, has_begun
            has_begun = True
            if message["type"] == "http.response.start" and _is_of_proxy(message):
                head = message
            elif head is None:
                await send(message)
            elif message["type"] == "http.response.body":
                text += message.get("body", b"")[: _MAX_ERROR - len(text)]
                if not message.get("more_body", False):
                    await _error_object(head, text)(scope, receive, send)

        await self._app(scope, receive, changed)
        if not has_begun:  # otherwise Serve's HTTP server would send a line of text
            await _error_object(_DIED, _DIED_TEXT)(scope, receive, send)


def _is_of_proxy(head: Message) -> bool:
    headers = MutableHeaders(scope=head)
    is_text = headers.get("content-type", "text/plain").startswith("text/plain")
    return head["status"] >= 400 and is_text and "x-replica" not in headers


def _error_object(head: Message, text: bytes) -> JSONResponse:
    status = head["status"]
    headers = MutableHeaders(scope=head)
    shown = text.decode("utf-8", "replace")
    try:  # some of Serve's errors are text in JSON
        message = json.loads(shown)
    except ValueError:
        message = shown
    is_busy = status in (429, 503) and "retry-after" in headers
    error = {
        "message": "the server is busy: try again later" if is_busy else str(message),
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": None,
        "code": "engine_busy" if is_busy else None,
    }
    kept = {
        name: value
        for name, value in headers.items()
        if name not in ("content-type", "content-length")
    }
    return JSONResponse({"error": error}, status, kept)
