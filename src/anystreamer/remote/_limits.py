"""How large an answer and its parts can be, so that no server can fill the client's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .._bridge import is_whole

__all__ = [
    "LOGPROB_SIZE",
    "MAX_CALLS",
    "MAX_DELTAS",
    "MAX_ITEMS",
    "PIECE_SIZE",
    "LimitExceeded",
    "Limits",
]


# The memory of an unread chunk besides its characters, and of a log-probability (bytes). With four
# characters in each, an answer can have 250,000 tokens.
PIECE_SIZE = 128
LOGPROB_SIZE = 32
# The most tool calls of an answer, entries of a list in an event, and deltas of one choice in an
# event: processing each takes microseconds. Log-probabilities take less: only the size of an event
# limits their number.
MAX_CALLS = 128
MAX_ITEMS = 256
MAX_DELTAS = 16


class LimitExceeded(Exception):
    """The server sends more than a limit allows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that `open_remote_engine` has options for."""

    #: Bytes of one event, and of one line. Characters of the arguments of all tool calls: they are
    #: parsed together.
    max_event_size: float = 2**20
    #: What all text, fields and log-probabilities of an answer take, in bytes.
    max_answer_size: float = 2**25

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (is_whole(value) or value == math.inf) or value < 1:
                raise ValueError(
                    f"{field.name} must be a whole number from 1 on, or math.inf, got {value!r:.60}"
                )

    @property
    def max_values(self) -> float:
        """How many values one event can have: parsing small ones takes the time, not their bytes.

        So one event takes some ten milliseconds. No other task of the loop runs meanwhile.
        """
        return self.max_event_size / 16

    def exceeded(self, name: str, subject: str) -> LimitExceeded:
        """The error of a limit, by the name of its option."""
        return LimitExceeded(
            f"{subject} is larger than {name}={getattr(self, name)}: if you trust the server, "
            f"pass a larger {name} to open_remote_engine()"
        )
