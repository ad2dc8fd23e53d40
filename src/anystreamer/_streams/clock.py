"""When the tokens of a generation are made: its timing, its deadlines, an engine's metrics."""

from __future__ import annotations

from time import perf_counter
from typing import Protocol

from .timeouts import Deadlines, Timeouts
from .types import Timing

__all__ = ["TokenClock", "TokenMetrics"]


class TokenMetrics(Protocol):
    """The metrics of an engine, as far as tokens are concerned."""

    def tokens(self, count: int, now: float, before: float | None) -> None:
        """Count tokens of a request. *before* is the time of its tokens before; None for none."""

    def observe_gap(self, seconds: float) -> None:
        """Observe the time between two deliveries of a request whose tokens cannot be counted."""


class TokenClock:
    """Follows one generation. All times are those of `time.perf_counter`, in seconds."""

    def __init__(self) -> None:
        self.called_at: float = perf_counter()
        self.first_token_at: float | None = None
        self.metrics: TokenMetrics | None = None  # of an engine
        self.deadlines: Deadlines | None = None
        self._latest_at: float | None = None

    def set_deadlines(self, timeouts: Timeouts, busy: float) -> None:
        """Start the deadlines of a generation that runs from now on. See `Deadlines` for *busy*."""
        if timeouts != Timeouts():
            self.deadlines = Deadlines(timeouts, self.called_at, busy)

    def tokens(self, count: int | None, now: float, busy: float) -> None:
        """Note that a step has made *count* tokens; None if their number is not known."""
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
        """Whether a deadline has passed, now or in an earlier call."""
        return self.deadlines is not None and self.deadlines.check(now, busy)

    @property
    def expired_phase(self) -> str | None:
        """The phase that was late, once `is_late` has seen it."""
        return None if self.deadlines is None else self.deadlines.expired_phase

    def elapsed(self, now: float) -> float:
        """Return the seconds from the call until *now*."""
        return now - self.called_at

    def timing(self, started_at: float | None, exited_at: float | None) -> Timing:
        """Return the seconds until the turn, the first token, and the worker's exit (or now)."""
        return Timing(
            queued=None if started_at is None else self.elapsed(started_at),
            first_token=None if self.first_token_at is None else self.elapsed(self.first_token_at),
            total=self.elapsed(perf_counter() if exited_at is None else exited_at),
        )
