"""Sends a Ctrl-C at each call in a program, one after another, where CPython checks for signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Striker"]


class Striker:
    """A profile function that strikes once at each place, and then never there again.

    Set it with `sys.setprofile`. It unsets itself as it strikes. A program sets it again until
    *places* no longer grows: then it has been struck at each.
    """

    def __init__(
        self, may_strike: Callable[[FrameType], bool], report: Callable[[str], object] = str
    ) -> None:
        """*report* is called with each place before the Ctrl-C there, which can make it hang."""
        self.places: list[str] = []
        self._report = report
        self._known: set[str] = set()
        self._may_strike = may_strike
        self._seen: dict[int, FrameType] = {}  # by id: kept, so that no other frame gets the same

    def begin(self) -> None:
        """A new run of the program begins."""
        self._seen.clear()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if not self._may_strike(frame):
            return
        if event == "call":
            if id(frame) in self._seen:
                return  # a coroutine goes on: CPython does not check for signals then
            self._seen[id(frame)] = frame
        elif event != "c_return":
            return
        code, caller = frame.f_code, frame.f_back
        place = (
            f"{code.co_filename} {code.co_qualname}:{frame.f_lineno} {event} "
            f"{getattr(arg, '__name__', '')} from {caller.f_code.co_qualname if caller else ''}"
        )
        if place not in self._known:
            sys.setprofile(None)
            self._known.add(place)
            self.places.append(place)
            self._report(place)
            signal.raise_signal(signal.SIGINT)
