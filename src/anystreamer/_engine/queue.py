"""Who waits for an engine, in the order in which they came."""

from __future__ import annotations

import math

from .._bridge import SafeEvent

__all__ = ["Line", "Place"]


class Line:
    """Gives a number of slots to those who wait, first come, first served. The loop's alone.

    Who came first and is still encoding its prompt does not hold up the others.
    """

    def __init__(self, slots: float, room: float = math.inf) -> None:
        self.slots = slots
        self.room = room  # for the sizes of all that run
        self.waiting: list[Place] = []
        self.running: set[Place] = set()

    def join(self) -> Place:
        """Wait from now on."""
        place = Place(self)
        self.waiting.append(place)
        return place

    def has_room_for(self, place: Place) -> bool:
        """Whether it could run beside those that do."""
        used = sum(each.size for each in self.running)
        return len(self.running) < self.slots and used + place.size <= self.room

    def serve(self) -> None:
        """Give free slots to those whose turn it is."""
        while True:
            place = next((each for each in self.waiting if each.is_ready), None)
            if place is None or not self.has_room_for(place):
                return  # nor may a smaller one go before it: it might wait for ever
            self.waiting.remove(place)
            self.running.add(place)
            place.turn.set()


class Place:
    """A place in the line, and later the turn: entered to wait for it, left to give it up."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.is_ready = False  # to have its turn
        self.size = 0  # the room that it takes
        self.turn = SafeEvent()

    @property
    def position(self) -> int | None:
        """How many are before it in the line; None once it waits no more."""
        try:
            return self._line.waiting.index(self)
        except ValueError:
            return None

    async def __aenter__(self) -> None:
        self.is_ready = True
        self._line.serve()
        await self.turn.wait()

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Wait no more, or end the turn. Calling it again changes nothing."""
        line = self._line
        if self in line.waiting:
            line.waiting.remove(self)
        line.running.discard(self)
        line.serve()
