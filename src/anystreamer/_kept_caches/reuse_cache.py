"""`ReuseCache`: the limits of the caches that an engine keeps, and the caches themselves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._bridge import is_whole
from .._generation import GenerationRequest
from .._model import uses_torch
from .._streams import Row

if TYPE_CHECKING:
    from .cache_reuse import CacheReuse
    from .kept_caches import KeptCaches

__all__ = ["EngineCaches", "ReuseCache", "validate_reuse_cache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseCache:
    """Limits of the KV caches that `open_engine` keeps, so that the next turn can use them.

    Both limits apply. The conversation that was used least recently is dropped first.

    Raises:
        TypeError, ValueError: for a limit that cannot work.
    """

    max_conversations: int = 8  #: how many are kept
    #: the largest share of the device's free memory that they take together, above 0 and below 1.
    #: The free memory is read once, before the first conversation is kept.
    max_share: float = 0.2

    def __post_init__(self) -> None:
        count, share = self.max_conversations, self.max_share
        if not is_whole(count):
            raise TypeError(f"max_conversations must be a whole number, not {count!r}")
        if count < 1:
            raise ValueError(
                f"max_conversations must be at least 1, not {count}; reuse_cache=False keeps none"
            )
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise TypeError(f"max_share must be a number, not {share!r}")
        if not 0 < share < 1:
            raise ValueError(f"max_share must be above 0 and below 1, not {share!r}")


def validate_reuse_cache(value: bool | ReuseCache) -> ReuseCache | None:
    """The limits that a value of ``reuse_cache=`` stands for; None keeps nothing.

    Raises:
        TypeError: it is neither a bool nor a `ReuseCache`.
    """
    if isinstance(value, ReuseCache):
        return value
    if not isinstance(value, bool):
        raise TypeError(f"reuse_cache must be True, False or a ReuseCache, not {value!r}")
    return ReuseCache() if value else None


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

            self._reuse = CacheReuse(
                self._model, self._limits.max_conversations, self._limits.max_share
            )
        return self._reuse.lend(request, kwargs, row, latest_ids)

    @property
    def kept(self) -> KeptCaches | None:
        """What is kept; None before the first request, and where nothing is ever kept."""
        return None if self._reuse is None else self._reuse.caches

    def close(self) -> None:
        """Give all memory back. In the engine's thread."""
        if self._reuse is not None:
            self._reuse.close()
