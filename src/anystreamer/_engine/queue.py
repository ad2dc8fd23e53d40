"""Who waits for an engine, in the order in which they came."""

from __future__ import annotations

import math

from .._bridge import SafeEvent

__all__ = ["AdmissionQueue", "Ticket"]


class AdmissionQueue:
    """Gives a number of slots to those who wait, first come, first served. The loop's alone.

    Who came first and is still encoding its prompt does not hold up the others.
    """

    def __init__(self, max_running: float, capacity: float = math.inf) -> None:
        self.max_running = max_running
        self.capacity = capacity  # for the sizes of all that run
        self.waiting: list[Ticket] = []
        self.running: set[Ticket] = set()

    def enqueue(self) -> Ticket:
        """Wait from now on."""
        ticket = Ticket(self)
        self.waiting.append(ticket)
        return ticket

    def has_capacity_for(self, ticket: Ticket) -> bool:
        """Whether it could run beside those that do."""
        used = sum(each.cost for each in self.running)
        return len(self.running) < self.max_running and used + ticket.cost <= self.capacity

    def admit_ready(self) -> None:
        """Give free slots to those whose turn it is."""
        while True:
            ticket = next((each for each in self.waiting if each.is_ready), None)
            if ticket is None or not self.has_capacity_for(ticket):
                return  # nor may a smaller one go before it: it might wait for ever
            self.waiting.remove(ticket)
            self.running.add(ticket)
            ticket.turn.set()


class Ticket:
    """A place in the line, and later the turn: entered to wait for it, left to give it up."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self.is_ready = False  # to have its turn
        self.cost = 0  # the room that it takes
        self.turn = SafeEvent()

    @property
    def position(self) -> int | None:
        """How many are before it in the line; None once it waits no more."""
        try:
            return self._queue.waiting.index(self)
        except ValueError:
            return None

    async def __aenter__(self) -> None:
        self.is_ready = True
        self._queue.admit_ready()
        await self.turn.wait()

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Wait no more, or end the turn. Calling it again changes nothing."""
        queue = self._queue
        if self in queue.waiting:
            queue.waiting.remove(self)
        queue.running.discard(self)
        queue.admit_ready()
