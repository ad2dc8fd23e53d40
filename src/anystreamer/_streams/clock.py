"""When the tokens of a generation are made: its timing, its deadlines, an engine's metrics."""

from __future__ import annotations

from time import perf_counter
from typing import Protocol

from .timeouts import Deadlines, Timeouts
from .types import Timing

__all__ = ["TokenClock", "TokenMetrics"]


class TokenMetrics(Protocol):
    """What counts tokens: of an engine."""

    def tokens(self, count: int, now: float, before: float | None) -> None:
        """A request has got tokens, and had the ones before them then; None for its first."""

    def observe_gap(self, seconds: float) -> None:
        """A request has got more, it is not known how many tokens, so long after the last time."""


class TokenClock:
    """Follows one generation. All times are those of `time.perf_counter`, in seconds."""

    def __init__(self) -> None:
        self.called_at = perf_counter()
        self.first_token_at: float | None = None
        self.metrics: TokenMetrics | None = None  # of an engine
        self.deadlines: Deadlines | None = None
        self._latest_at: float | None = None

    def set_deadlines(self, timeouts: Timeouts, busy: float) -> None:
        """Watch the phases of a generation that runs from now on. *busy* is its own clock."""
        if timeouts != Timeouts():
            self.deadlines = Deadlines(timeouts, self.called_at, busy)

    def tokens(self, count: int | None, now: float, busy: float) -> None:
        """A step has made *count* tokens (None: it is not known); *busy* is as for `Deadlines`."""
        if self.first_token_at is None:
            self.first_token_at = now
        if self.metrics is not None:
            if count is not None:
                self.metrics.tokens(count, now, self._latest_at)
            elif self._latest_at is not None:
                self.metrics.observe_gap(now - self._latest_at)
        self._latest_at = now
        if self.deadlines is not None:
            self.deadlines.token_made(busy)

    def is_late(self, now: float, busy: float) -> bool:
        """Whether a deadline has passed, now or before."""
        return self.deadlines is not None and self.deadlines.check(now, busy)

    @property
    def expired_phase(self) -> str | None:
        """The phase that was late, once it was seen."""
        return None if self.deadlines is None else self.deadlines.expired_phase

    def elapsed(self, now: float) -> float:
        """The seconds from the call until then."""
        return now - self.called_at

    def timing(self, started_at: float | None, exited_at: float | None) -> Timing:
        """The seconds that it took until the worker exited, or until now."""
        return Timing(
            queued=None if started_at is None else self.elapsed(started_at),
            first_token=None if self.first_token_at is None else self.elapsed(self.first_token_at),
            total=self.elapsed(perf_counter() if exited_at is None else exited_at),
        )
