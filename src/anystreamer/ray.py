"""The server as a Ray Serve application: one engine in each replica, on as many machines as it has.

serve run anystreamer.ray:app model=Qwen/Qwen3-0.6B batching=continuous
"""

# Without `from __future__ import annotations`: Serve reads the annotation of app() itself.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, Self

from anyio import to_thread

try:
    from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator
    from ray import serve
    from starlette.applications import Starlette
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as _missing:
    raise ImportError(
        f"anystreamer.ray needs Ray Serve ({_missing}): pip install 'anystreamer[ray]'"
    ) from _missing

from . import Engine, open_engine
from ._load_model import load, shown_name
from .server import create_app

__all__ = ["Settings", "app", "application"]

# What continuous batching runs at once if nobody says.
_USUAL_RUNNING = 64
# Seconds after which a client that was refused may ask again.
_RETRY_AFTER = 1


class Settings(BaseModel, extra="forbid"):
    """What a replica serves, and what it allows. See `anystreamer.server.create_app`.

    Each is an argument of the application: ``serve run anystreamer.ray:app batching=continuous``,
    or ``args:`` in a config file.
    """

    model: str | None = Field(None, description="A folder or a hub id; without, the embedded one.")
    model_name: str | None = Field(None, description="What clients know it by.")
    batching: Literal["none", "continuous"] = "none"  #: as in `anystreamer.open_engine`
    max_running: PositiveInt | None = Field(
        None, description="Requests that a model works on at once, with continuous batching."
    )
    max_waiting: PositiveInt = Field(
        100, description="Requests that may wait at each of Serve's proxies; the next get 503."
    )
    #: What clients have to send, if anything; without, the environment's ``ANYSTREAMER_API_KEY``.
    api_key: str | None = Field(
        default_factory=lambda: os.environ.get("ANYSTREAMER_API_KEY") or None, repr=False
    )
    max_body_bytes: PositiveInt = 1024 * 1024  #: of a request
    default_max_tokens: PositiveInt = 1024  #: of an answer to a request that sets no limit
    max_tokens_limit: PositiveInt | None = None  #: that a request may ask for
    timeout: PositiveFloat | None = Field(
        600.0, description="Seconds for a request once a replica has it; null sets no limit."
    )
    allow_origins: list[str] = []  #: of pages elsewhere whose scripts may ask
    allowed_hosts: list[str] | None = None  #: the names that it may be asked for by
    trust_remote_code: bool = False  #: run the code that comes with a model

    @model_validator(mode="after")
    def _checked(self) -> Self:
        """Refuse here what each replica would refuse, one after the other."""
        if self.batching == "none" and self.max_running not in (None, 1):
            raise ValueError("max_running= needs batching=continuous")
        return self

    def running(self) -> int:
        """How many requests a replica's model works on at once."""
        if self.batching == "none":
            return 1
        return self.max_running or _USUAL_RUNNING


@serve.ingress()
class _Replica:
    """A model, its engine for as long as the replica lives, and the application."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: Engine

    def __serve_build_asgi_app__(self) -> Starlette:
        replica = serve.get_replica_context().replica_id.unique_id
        return Starlette(lifespan=self._serving, middleware=[Middleware(_Named, replica=replica)])

    @asynccontextmanager
    async def _serving(self, outer: Starlette) -> AsyncIterator[None]:
        """In a task of its own, from before the replica's first request to after its last."""
        settings = self._settings
        model, tokenizer = await to_thread.run_sync(
            partial(load, settings.model, trusts_code=settings.trust_remote_code)
        )
        async with open_engine(
            model,
            tokenizer,
            batching=settings.batching,
            max_running=settings.max_running,
            sampling=settings.batching == "continuous",
        ) as self._engine:
            inner = create_app(
                self._engine,
                model_name=settings.model_name or shown_name(settings.model),
                api_key=settings.api_key,
                max_body_bytes=settings.max_body_bytes,
                default_max_tokens=settings.default_max_tokens,
                max_tokens_limit=settings.max_tokens_limit,
                timeout=settings.timeout,
                allow_origins=settings.allow_origins,
                allowed_hosts=settings.allowed_hosts,
            )
            outer.mount("/", inner)
            yield

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises: one whose engine has died."""
        state = getattr(self._engine, "state", "open")
        if state != "open":
            raise RuntimeError(f"the engine is {state}")


def app(settings: Settings) -> Any:
    """Build the application, as ``serve run`` and Serve's config files want it built."""
    return application(settings)


def application(settings: Settings, **options: Any) -> Any:
    """Build the application, for `ray.serve.run`.

    A replica is given as many requests as its model works on at once. The others wait in Serve's
    own queue, where the first free replica takes them; and Serve's autoscaling sees them.

    Args:
        settings: what each replica serves.
        options: of Serve's deployments, such as ``num_replicas=2`` and
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
    """Says in each response which replica it is of: its log and its metrics are its own."""

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-replica"] = self._replica
            await send(message)

        await self._app(scope, receive, named)
