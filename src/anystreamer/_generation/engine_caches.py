"""The caches of one engine, made when its thread needs the first one. Needs no torch to be made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from .._streams import Row
from .model import uses_torch
from .request import GenerationRequest
from .reuse_cache import ReuseCache

if TYPE_CHECKING:
    from .cache_reuse import CacheReuse
    from .kept_caches import KeptCaches

__all__ = ["EngineCaches"]


class EngineCaches:
    """The caches of one engine, made when its thread needs the first one.

    Args:
        model: of the engine.
        limits: None keeps nothing.
    """

    def __init__(self, model: Any, limits: ReuseCache | None) -> None:
        self._model = model
        self._limits = limits
        self._reuse: CacheReuse | None = None

    def lend(
        self,
        request: GenerationRequest,
        kwargs: dict[str, Any],
        row: Row,
        latest_ids: Callable[[], Any],
    ) -> AbstractContextManager[None]:
        """See `CacheLender`. In the engine's thread."""
        if self._limits is None or not uses_torch(self._model):
            return nullcontext()
        if self._reuse is None:
            from .cache_reuse import CacheReuse

            self._reuse = CacheReuse(self._model, self._limits)
        return self._reuse.lend(request, kwargs, row, latest_ids)

    @property
    def kept(self) -> KeptCaches | None:
        """What is kept; None before the first request, and where nothing is ever kept."""
        return None if self._reuse is None else self._reuse.caches

    def close(self) -> None:
        """Give all memory back. In the engine's thread."""
        if self._reuse is not None:
            self._reuse.close()
