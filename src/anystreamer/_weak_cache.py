"""`WeakCache`: values that are kept for objects, hashable or not, for as long as these live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakMethod, ref

__all__ = ["WeakCache"]

T = TypeVar("T")


class WeakCache(Generic[T]):
    """Keeps one value for each object until the object, or the cache, is collected. In any thread.

    The objects do not keep the cache alive, as `weakref.finalize` would: a model can live longer
    than many event loops, which have a cache each. The cache keeps an object alive only if the
    object does not support weak references.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[T, object]] = {}  # by the id of the object

    def get(self, owner: object, new: Callable[[], T]) -> T:
        """The value of an object, made by *new* if it has none."""
        key = id(owner)
        found = self._kept.get(key)
        if found is None:  # another thread can have come first meanwhile
            found = self._kept.setdefault(key, (new(), self._reference_to(owner)))
        return found[0]

    def clear(self) -> None:
        """Forget all values."""
        self._kept.clear()

    def _reference_to(self, owner: object) -> object:
        """A reference that forgets the value when the object is collected."""
        key, pop = id(owner), WeakMethod(self._pop)

        def forget(_: object) -> None:
            if (pop_here := pop()) is not None:
                pop_here(key)

        try:
            return ref(owner, forget)
        except TypeError:  # it stays, or another object could have its id, and get its value
            return owner

    def _pop(self, key: int) -> None:
        self._kept.pop(key, None)
