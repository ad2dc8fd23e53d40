"""Those that wait for a turn of an engine or a worker, in order of arrival."""

from __future__ import annotations

import math

from .._bridge import SafeEvent

__all__ = ["AdmissionQueue", "Ticket"]


class AdmissionQueue:
    """Admits requests up to two limits, first come, first served. Used on the loop only.

    A request whose prompt is still being encoded does not hold up the others.
    """

    def __init__(self, max_running: float, capacity: float = math.inf) -> None:
        self.max_running = max_running
        self.capacity = capacity  # for the costs of all that run
        self.waiting: list[Ticket] = []
        self.running: set[Ticket] = set()

    def enqueue(self) -> Ticket:
        """Join the queue."""
        ticket = Ticket(self)
        self.waiting.append(ticket)
        return ticket

    def has_capacity_for(self, ticket: Ticket) -> bool:
        """Whether it could run beside those that already run."""
        used = sum(each.cost for each in self.running)
        return len(self.running) < self.max_running and used + ticket.cost <= self.capacity

    @property
    def slots(self) -> float:
        """How many requests can run at once: of those that are known, at their average cost."""
        costs = [each.cost for each in (*self.running, *self.waiting) if each.cost]
        fitting = self.capacity * len(costs) / sum(costs) if costs else math.inf
        return max(1, len(self.running), min(self.max_running, fitting))

    def admit_ready(self) -> None:
        """Admit those whose turn it is."""
        while True:
            ticket = next((each for each in self.waiting if each.is_ready), None)
            if ticket is None or not self.has_capacity_for(ticket):
                return  # a smaller one does not go before it, or it could wait for ever
            self.waiting.remove(ticket)
            self.running.add(ticket)
            ticket.admitted.set()


class Ticket:
    """A place in the queue, and later the turn: entered to wait for it, left to give it up."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self.is_ready = False  # to be admitted
        self.cost = 0  # its share of the capacity
        self.admitted = SafeEvent()

    @property
    def position(self) -> int | None:
        """How many are before it in the queue; None once it does not wait any more."""
        try:
            return self._queue.waiting.index(self)
        except ValueError:
            return None

    async def __aenter__(self) -> None:
        self.is_ready = True
        self._queue.admit_ready()
        await self.admitted.wait()

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Leave the queue, or end the turn. Calling it again changes nothing."""
        queue = self._queue
        if self in queue.waiting:
            queue.waiting.remove(self)
        queue.running.discard(self)
        queue.admit_ready()
