"""Every exception that is anystreamer's own."""

from __future__ import annotations

__all__ = ["GenerationStopped", "GenerationTimeout"]


class GenerationStopped(Exception):
    """Raised in the worker thread, out of ``emit()`` or ``put()``, when its stream was stopped.

    It unwinds a producer that does not ask whether it should stop. A producer may clean up and let
    it
    pass: coming out of a stopped producer it is the normal end, and no consumer ever sees it.
    """


class GenerationTimeout(TimeoutError):
    """Raised from a stream whose generation took too long, after the text that it had made."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the generation took too long: {phase}")
        self.phase = phase  #: ``queued``, ``first_token``, ``between_tokens`` or ``total``

    def __reduce__(self) -> tuple[type[GenerationTimeout], tuple[str]]:
        return type(self), (self.phase,)
