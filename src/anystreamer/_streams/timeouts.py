"""When a generation is late, and in which phase. Pure functions and values."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .._bridge import validate_seconds

__all__ = ["PHASES", "Deadlines", "Timeouts", "queue_deadline", "validate_timeouts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each phase of a generation can take, in seconds; None is without a limit.

    Time during which the worker waits for the consumer or for space in the buffer counts in *total*
    only.
    """

    queued: float | None = None  #: from the call until the model is free
    first_token: float | None = None  #: from then to the first token: the prefill
    between_tokens: float | None = None  #: from one token to the next
    total: float | None = None  #: from the call to the end

    def __post_init__(self) -> None:
        for field in fields(self):
            validate_seconds(f"timeout: {field.name}", getattr(self, field.name))


PHASES = tuple(field.name for field in fields(Timeouts))


def validate_timeouts(timeout: object) -> Timeouts:
    """Return the *timeout* argument as `Timeouts`. Raises TypeError or ValueError."""
    if isinstance(timeout, Timeouts):
        return timeout
    if timeout is None or (isinstance(timeout, int | float) and not isinstance(timeout, bool)):
        return Timeouts(total=timeout)
    raise TypeError(
        f"timeout must be a number of seconds or Timeouts(...), not {type(timeout).__name__}"
    )


class Deadlines:
    """Follows a generation that runs, and finds out in which phase it is late.

    It has two clocks. *now* is the usual one. *busy* is the model's own: it stands still while the
    worker waits for its consumer.
    """

    def __init__(self, timeouts: Timeouts, called_at: float, busy: float) -> None:
        self._total_at = _at(called_at, timeouts.total)
        self._between = timeouts.between_tokens
        self._phase = "first_token"
        self._phase_ends = _at(busy, timeouts.first_token)
        self.expired_phase: str | None = None  #: the phase that was late, once `check` has seen it

    def token_made(self, busy: float) -> None:
        """Note that a step has made its tokens, and the next step begins."""
        self._phase = "between_tokens"
        self._phase_ends = _at(busy, self._between)

    def check(self, now: float, busy: float) -> bool:
        """Whether a phase is late, now or in an earlier call."""
        if self.expired_phase is None:
            if now >= self._total_at:
                self.expired_phase = "total"
            elif busy >= self._phase_ends:
                self.expired_phase = self._phase
        return self.expired_phase is not None

    def next(self, now: float, busy: float) -> tuple[float, str]:
        """Return how many seconds are left, and the phase that is late then."""
        return min((self._total_at - now, "total"), (self._phase_ends - busy, self._phase))


def queue_deadline(timeouts: Timeouts, seconds_since_call: float) -> tuple[float, str]:
    """Return how many seconds a turn can be waited for, and the phase that is late then."""
    queued = math.inf if timeouts.queued is None else timeouts.queued
    total = math.inf if timeouts.total is None else timeouts.total - seconds_since_call
    return min((queued, "queued"), (total, "total"))


def _at(since: float, seconds: float | None) -> float:
    return math.inf if seconds is None else since + seconds
