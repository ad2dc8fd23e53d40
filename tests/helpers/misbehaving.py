"""Exceptions whose classes refuse what Python lets them refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["MISBEHAVING", "Frozen"]


class Refused(Exception):
    """What a misbehaving exception raises when something is asked of it."""


def _refuse(*_: object) -> NoReturn:
    raise Refused


class NoText(Exception):
    """Cannot be shown."""

    __repr__ = __str__ = _refuse


class NoContext(Exception):
    """Can have no context and no cause."""

    __context__ = property(_refuse, _refuse)
    __cause__ = property(_refuse, _refuse)


class NoNotes(Exception):
    """Takes no notes."""

    add_note = _refuse


class NotesThatAreNoList(Exception):
    """Has notes to which none can be added."""

    __notes__ = ()  # type: ignore[assignment]


@dataclass(frozen=True)
class Frozen(Exception):
    """Takes no attributes."""

    code: int = 0


class NoAttributes(Exception):
    """Has no attributes, not even ``__class__``."""

    def __getattribute__(self, name: str) -> Any:
        raise Refused(name)


class False_(Exception):
    """Is false, empty, equal to all, and has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


class RaisesItself(Exception):
    """Raises itself when it is shown or noted."""

    def __repr__(self) -> str:
        raise self

    __str__ = __repr__

    def add_note(self, note: str) -> None:
        raise self


MISBEHAVING: list[Callable[[], BaseException]] = [
    NoText,
    NoContext,
    NoNotes,
    NotesThatAreNoList,
    Frozen,
    NoAttributes,
    False_,
    RaisesItself,
]
