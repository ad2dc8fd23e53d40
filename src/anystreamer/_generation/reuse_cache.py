"""`ReuseCache`: how many conversations an engine keeps, and how much memory they can take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReuseCache", "validate_reuse_cache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseCache:
    """What `open_engine` keeps of conversations, so that the next turn does not read them again.

    Both limits hold. The conversation that was used least recently goes first.

    Raises:
        TypeError, ValueError: for a limit that cannot work.
    """

    max_conversations: int = 8  #: how many are kept
    #: the largest share of the device's free memory that they take together, above 0 and below 1.
    #: The free memory is read once, before the first conversation is kept.
    max_share: float = 0.2

    def __post_init__(self) -> None:
        count, share = self.max_conversations, self.max_share
        if isinstance(count, bool) or not isinstance(count, int):
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
