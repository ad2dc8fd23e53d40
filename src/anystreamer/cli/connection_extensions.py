"""Lets the application close a connection at once, and see how many connections are open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .._serving import ABORT, CONNECTIONS

__all__ = ["with_extensions"]


def with_extensions(
    app: Any, abort: Callable[[], Awaitable[None]], open_connections: Callable[[], int], limit: int
) -> Any:
    """The application for one connection: requests have the extensions ABORT and CONNECTIONS.

    Args:
        app: the application for all connections.
        abort: closes this connection at once, for a client that does not take its response.
        open_connections: returns how many connections the server has now.
        limit: how many it can have.
    """
    own = {ABORT: abort, CONNECTIONS: (open_connections, limit)}

    async def with_extension(scope: Any, *args: Any) -> None:
        await app({**scope, "extensions": {**scope.get("extensions", {}), **own}}, *args)

    return with_extension
