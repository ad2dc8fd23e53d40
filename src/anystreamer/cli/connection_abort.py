"""Lets a response close its connection at once, for a client that does not take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .._asgi_extensions import ABORT

__all__ = ["with_abort"]


def with_abort(app: Any, abort: Callable[[], Awaitable[None]]) -> Any:
    """The application of a connection: its responses can close the connection at once."""

    async def with_extension(scope: Any, *args: Any) -> None:
        extensions = {**scope.get("extensions", {}), ABORT: abort}
        await app({**scope, "extensions": extensions}, *args)

    return with_extension
