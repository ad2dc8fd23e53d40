"""The streams that wait for a turn of an engine or a worker, in order of arrival."""

from __future__ import annotations

import math

from .._bridge import SafeEvent

__all__ = ["AdmissionQueue", "Lane", "Ticket"]


class AdmissionQueue:
    """Admits requests up to two limits, first come, first served. Used on the loop only.

    A request whose prompt is still being encoded does not hold up the others. There is one queue
    for all lanes: a lane that has space admits the first request that waits for it.
    """

    def __init__(self, max_running: float, capacity: float = math.inf) -> None:
        self.main = Lane(max_running, capacity)  #: of tickets that have not chosen another one
        self.lanes = [self.main]
        self.waiting: list[Ticket] = []

    def add_lane(self, max_running: float) -> Lane:
        """Another lane, whose requests run beside those of the others."""
        self.lanes.append(lane := Lane(max_running))
        return lane

    def enqueue(self) -> Ticket:
        """Join the queue."""
        ticket = Ticket(self)
        self.waiting.append(ticket)
        return ticket

    @property
    def running(self) -> set[Ticket]:
        """Those whose turn it is, in any lane."""
        return set[Ticket]().union(*(lane.running for lane in self.lanes))

    @property
    def max_running(self) -> float:
        """How many can have their turn at once, in all lanes."""
        return sum(lane.max_running for lane in self.lanes)

    def waiting_for(self, lane: Lane) -> list[Ticket]:
        """Those that wait for a lane, in their order."""
        return [each for each in self.waiting if each.lane is lane]

    def has_to_wait(self, ticket: Ticket) -> bool:
        """Whether its lane has no room for it, or others are before it there."""
        lane = ticket.lane
        return not lane.has_capacity_for(ticket) or any(
            each.is_ready for each in self.waiting_for(lane) if each is not ticket
        )

    @property
    def slots(self) -> float:
        """How many requests can run at once: of those that are known, at their average cost."""
        return sum(lane.slots(self.waiting_for(lane)) for lane in self.lanes)

    def admit_ready(self) -> None:
        """Admit those whose turn it is."""
        for lane in self.lanes:
            while True:
                ready = (each for each in self.waiting if each.lane is lane and each.is_ready)
                ticket = next(ready, None)
                if ticket is None or not lane.has_capacity_for(ticket):
                    break  # a smaller one does not go before it, or it could wait forever
                self.waiting.remove(ticket)
                lane.running.add(ticket)
                ticket.admitted.set()


class Lane:
    """What runs at once, up to two limits."""

    def __init__(self, max_running: float, capacity: float = math.inf) -> None:
        self.max_running = max_running
        self.capacity = capacity  # for the costs of all that run
        self.running: set[Ticket] = set()

    def has_capacity_for(self, ticket: Ticket) -> bool:
        """Whether it could run beside those that already run."""
        used = sum(each.cost for each in self.running)
        return len(self.running) < self.max_running and used + ticket.cost <= self.capacity

    def slots(self, waiting: list[Ticket]) -> float:
        """How many can run at once, if all are like those that run or wait."""
        costs = [each.cost for each in (*self.running, *waiting) if each.cost]
        fitting = self.capacity * len(costs) / sum(costs) if costs else math.inf
        return max(1, len(self.running), min(self.max_running, fitting))


class Ticket:
    """A place in the queue, and later the turn: entered to wait for it, left to give it up."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self.lane = queue.main  # to be changed before the ticket is entered
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
        self.lane.running.discard(self)
        queue.admit_ready()
