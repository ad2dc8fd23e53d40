"""When a generation is late, and in which phase. Pure: the worker thread asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["PHASES", "Deadlines", "Timeouts", "queue_deadline", "validate_timeouts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each phase of a generation may take, in seconds; None for as long as it likes.

    The time that a consumer takes, or a full buffer, counts in *total* alone.
    """

    queued: float | None = None  #: until the model is free
    first_token: float | None = None  #: from then to the first token: the prefill
    between_tokens: float | None = None  #: from one token to the next
    total: float | None = None  #: from the call to the end

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                kind = type(seconds).__name__
                raise TypeError(f"timeout: {field.name} must be a number of seconds, not {kind}")
            if not seconds > 0:
                raise ValueError(f"timeout: {field.name} must be more than 0, not {seconds!r}")


PHASES = tuple(field.name for field in fields(Timeouts))


def validate_timeouts(timeout: object) -> Timeouts:
    """The *timeout* argument of a public function. Raises TypeError or ValueError if it is none."""
    if isinstance(timeout, Timeouts):
        return timeout
    if timeout is None or (isinstance(timeout, int | float) and not isinstance(timeout, bool)):
        return Timeouts(total=timeout)
    raise TypeError(
        f"timeout must be a number of seconds or Timeouts(...), not {type(timeout).__name__}"
    )


class Deadlines:
    """Follows a generation that runs, and says in which phase it is late.

    Two clocks: *now* is everybody's, and *spent* the model's own, which stands still while the
    worker is held up by its consumer.
    """

    def __init__(self, timeouts: Timeouts, called_at: float, spent: float) -> None:
        self._total_at = _at(called_at, timeouts.total)
        self._between = timeouts.between_tokens
        self._phase = "first_token"
        self._phase_ends = _at(spent, timeouts.first_token)
        self.expired_phase: str | None = None  #: the phase, once it has been too late

    def token_made(self, spent: float) -> None:
        """A step has made its tokens, and another begins."""
        self._phase = "between_tokens"
        self._phase_ends = _at(spent, self._between)

    def check(self, now: float, spent: float) -> bool:
        """Whether it is late, now or before."""
        if self.expired_phase is None:
            if now >= self._total_at:
                self.expired_phase = "total"
            elif spent >= self._phase_ends:
                self.expired_phase = self._phase
        return self.expired_phase is not None

    def next(self, now: float, spent: float) -> tuple[float, str]:
        """How many seconds are left, and the phase that is late then."""
        return min((self._total_at - now, "total"), (self._phase_ends - spent, self._phase))


def queue_deadline(timeouts: Timeouts, seconds_since_call: float) -> tuple[float, str]:
    """For one who waits for its turn: how many seconds it may, and the phase that is late then."""
    queued = math.inf if timeouts.queued is None else timeouts.queued
    total = math.inf if timeouts.total is None else timeouts.total - seconds_since_call
    return min((queued, "queued"), (total, "total"))


def _at(since: float, seconds: float | None) -> float:
    return math.inf if seconds is None else since + seconds
