"""How long streams of an engine or a worker wait for their turn, and take in all: histograms."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Counts", "Histogram", "TurnMetrics"]

# The weight of the latest turn in the moving average of how long turns take.
LATEST_WEIGHT = 0.2

# Upper bounds in seconds, up to more than the timeout of any request.
TURN = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
    *(300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many times were at most this long, in the form of Prometheus and OpenTelemetry."""

    bounds: tuple[float, ...]  #: upper bounds in seconds, rising
    counts: tuple[int, ...]  #: times up to each bound (cumulative), and last all of them
    sum: float  #: of all times, in seconds

    @property
    def count(self) -> int:
        """How many times there were."""
        return self.counts[-1]


class Counts:
    """A histogram that grows. Not safe from several threads at once."""

    def __init__(self, bounds: Sequence[float] = TURN) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a time of this many seconds, *times* times."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._sum += seconds * times

    def histogram(self) -> Histogram:
        """The counts so far."""
        return Histogram(bounds=self._bounds, counts=tuple(accumulate(self._counts)), sum=self._sum)


class TurnMetrics:
    """Times of streams, until their turn and until their end. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queued = Counts()
        self._total = Counts()
        self._average_turn: float | None = None  # seconds

    def on_turn_end(self, queued: float | None, total: float) -> None:
        """Count a stream that has ended, by the seconds since its call.

        *queued* is the time until its turn, and None if the turn did not come.
        """
        with self._lock:
            if queued is not None:
                self._queued.add(queued)
                turn = total - queued
                average = turn if self._average_turn is None else self._average_turn
                self._average_turn = average + LATEST_WEIGHT * (turn - average)
            self._total.add(total)

    def estimated_wait(self, waiting: int, slots: float) -> float | None:
        """Estimate the seconds until *waiting* streams, and one more, have had their turn.

        *slots* is how many turns there can be at once. It is not how many there are now: at the
        beginning of a burst there is none.
        """
        turn = self._average_turn
        return None if turn is None else turn * (waiting + 1) / slots

    def histograms(self) -> tuple[Histogram, Histogram]:
        """The times until the turn, and the times until the end, as they are now."""
        with self._lock:
            return self._queued.histogram(), self._total.histogram()
