"""What an engine counts and times, for its owner's dashboards."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter

from .._streams import Timing

__all__ = ["EngineMetrics", "EngineStatistics", "Histogram"]

# The rate of tokens is measured over the last seconds, in bins.
RATE_SECONDS = 5.0
BIN_SECONDS = 0.25

# The weight of the latest request in the moving average of how long requests take.
LATEST_WEIGHT = 0.2

# Upper bounds in seconds, from a tiny model's step to more than anyone waits for.
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Numbers of one engine, since it was opened unless stated otherwise."""

    waiting: int  #: requests whose turn has not come
    running: int  #: requests that the model works on
    computed_tokens: int  #: made by the model
    tokens_per_second: float  #: over the last seconds
    cache_used: float | None  #: share of the cache in use; None where the engine has none
    queued: Histogram  #: from the call to the turn
    first_token: Histogram  #: from the call to the first token
    between_tokens: Histogram  #: from one token of a request to its next
    total: Histogram  #: from the call to the end; `count` is the number of requests that ended


class EngineMetrics:
    """Counts and times while an engine runs. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened_at = perf_counter()
        self._tokens = 0
        self._bins: deque[list[float]] = deque()  # [start, tokens] each
        self._queued = _Counts(REQUEST)
        self._first_token = _Counts(REQUEST)
        self._between = _Counts(BETWEEN)
        self._total = _Counts(REQUEST)
        self._average_turn: float | None = None  # seconds

    def tokens(self, count: int, now: float, before: float | None) -> None:
        """A request has got tokens; *before* is the time of those before, None for the first."""
        with self._lock:
            self._tokens += count
            bins = self._bins
            if bins and now - bins[-1][0] < BIN_SECONDS:
                bins[-1][1] += count
            else:
                bins.append([now, count])
                while now - bins[0][0] > RATE_SECONDS + BIN_SECONDS:
                    bins.popleft()
            if before is not None:
                self._between.add((now - before) / count, count)

    def observe_gap(self, seconds: float) -> None:
        """A request has got an unknown number of tokens, this many seconds after the last ones."""
        with self._lock:
            self._between.add(seconds)

    def on_end(self, timing: Timing) -> None:
        """A request has ended."""
        with self._lock:
            if timing.queued is not None:
                self._queued.add(timing.queued)
                turn = timing.total - timing.queued
                average = turn if self._average_turn is None else self._average_turn
                self._average_turn = average + LATEST_WEIGHT * (turn - average)
            if timing.first_token is not None:
                self._first_token.add(timing.first_token)
            self._total.add(timing.total)

    def estimated_wait(self, waiting: int, slots: float) -> float | None:
        """An estimate of the seconds until all that wait, and one more, have had their turn.

        *slots* is how many requests can run at once. It is not how many run now: at the beginning
        of a burst none does.
        """
        turn = self._average_turn
        return None if turn is None else turn * (waiting + 1) / slots

    def statistics(self, *, waiting: int, running: int, used: float | None) -> EngineStatistics:
        """All of it, as it is now."""
        now = perf_counter()
        with self._lock:
            recent = sum(count for begun, count in self._bins if now - begun <= RATE_SECONDS)
            return EngineStatistics(
                waiting=waiting,
                running=running,
                computed_tokens=self._tokens,
                tokens_per_second=recent
                / max(BIN_SECONDS, min(RATE_SECONDS, now - self._opened_at)),
                cache_used=used,
                queued=self._queued.histogram(),
                first_token=self._first_token.histogram(),
                between_tokens=self._between.histogram(),
                total=self._total.histogram(),
            )


class _Counts:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._sum += seconds * times

    def histogram(self) -> Histogram:
        return Histogram(bounds=self._bounds, counts=tuple(accumulate(self._counts)), sum=self._sum)
