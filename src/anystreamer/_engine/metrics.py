"""What an engine counts and times, for its owner's dashboards."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import perf_counter

from .._streams import Timing
from .._workers import Counts, Histogram, TurnMetrics

__all__ = ["EngineMetrics", "EngineStatistics"]

# The rate of tokens is measured over the last seconds, in bins.
RATE_SECONDS = 5.0
BIN_SECONDS = 0.25

# Upper bounds in seconds, from a tiny model's step to a timeout between two tokens.
BETWEEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5),
    *(5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)

NO_TIMES = Histogram(bounds=(), counts=(0,), sum=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Numbers of one engine, since it was opened unless stated otherwise."""

    waiting: int  #: requests whose turn has not come
    running: int  #: requests that the model works on
    waiting_alone: int = 0  #: of those that wait, those that will be served one by one
    running_alone: int = 0  #: of those that run, the one that is served by itself
    computed_tokens: int  #: made by the model
    tokens_per_second: float  #: over the last seconds
    cache_used: float | None  #: share of the cache in use; None where the engine has none
    queued: Histogram  #: from the call to the turn
    first_token: Histogram  #: from the call to the first token
    between_tokens: Histogram  #: from one token of a request to its next
    #: from the call to the end; `count` is the number of requests that ended, without those that
    #: were refused
    total: Histogram
    prefill: Histogram = NO_TIMES  #: from the turn to the first token


class EngineMetrics(TurnMetrics):
    """Counts and times while an engine runs. Safe from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._opened_at = perf_counter()
        self._tokens = 0
        self._bins: deque[list[float]] = deque()  # [start, tokens] each
        self._first_token = Counts()
        self._prefill = Counts()
        self._between = Counts(BETWEEN)

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
        if timing.first_token is not None:
            with self._lock:
                self._first_token.add(timing.first_token)
                if timing.queued is not None:
                    self._prefill.add(timing.first_token - timing.queued)
        self.on_turn_end(timing.queued, timing.total)

    def statistics(
        self,
        *,
        waiting: int,
        running: int,
        used: float | None,
        waiting_alone: int = 0,
        running_alone: int = 0,
    ) -> EngineStatistics:
        """All of it, as it is now."""
        now = perf_counter()
        with self._lock:
            recent = sum(count for begun, count in self._bins if now - begun <= RATE_SECONDS)
            return EngineStatistics(
                waiting=waiting,
                running=running,
                waiting_alone=waiting_alone,
                running_alone=running_alone,
                computed_tokens=self._tokens,
                tokens_per_second=recent
                / max(BIN_SECONDS, min(RATE_SECONDS, now - self._opened_at)),
                cache_used=used,
                queued=self._queued.histogram(),
                first_token=self._first_token.histogram(),
                between_tokens=self._between.histogram(),
                total=self._total.histogram(),
                prefill=self._prefill.histogram(),
            )
