"""What comes of a class in each mode: it is right, or refused with a reason, or wrong."""

from __future__ import annotations

import anyio

from .build import build
from .modes import MODES, Refused

__all__ = ["NOT_BUILT", "RIGHT", "is_wrong", "outcome_of"]

RIGHT = "yes"
NOT_BUILT = "no tiny model"
_WRONG = "WRONG: "

# Words of the library's refusals that are the same in several modes, and what the table says.
_REFUSALS = {
    "streams text": "it makes audio",
    "stream one recording at a time": "one recording alone",
}


def outcome_of(class_name: str) -> dict[str, str]:
    """For each mode `RIGHT`, the reason of a refusal, or what is wrong."""
    try:
        tiny = build(class_name)
    except RuntimeError:
        return dict.fromkeys(MODES, NOT_BUILT)
    outcome = {}
    for mode, check in MODES.items():
        try:
            anyio.run(check, tiny)
        except Refused as exc:
            outcome[mode] = str(exc)
        except Exception as exc:
            outcome[mode] = _REFUSALS.get(_words(exc), f"{_WRONG}{exc!r}")
        else:
            outcome[mode] = RIGHT
    return outcome


def _words(exc: Exception) -> str:
    return next((words for words in _REFUSALS if words in str(exc)), "")


def is_wrong(outcome: str) -> bool:
    return outcome.startswith(_WRONG)
