"""The only looks that tests take at the inside of a stream or an engine."""

from __future__ import annotations

from typing import Any

__all__ = ["is_idle", "open_states", "state_of", "worker_left"]


def state_of(stream: Any) -> Any:
    """The state of a stream: `StreamState`, or `GenerationState` of text."""
    return stream._state


def worker_left(stream: Any) -> bool:
    """Whether the stream's worker has left its producer, or will never enter it."""
    return bool(state_of(stream).worker_exited.is_set())


def open_states(engine: Any) -> list[Any]:
    """The states of all requests that an engine has."""
    return [task.state for task in engine.tasks]


def is_idle(engine: Any) -> bool:
    """Whether an engine has no request."""
    return not len(engine.tasks)
