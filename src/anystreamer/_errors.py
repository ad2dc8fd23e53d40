"""Every exception that is anystreamer's own, and how one is raised again unchanged."""

from __future__ import annotations

from typing import NoReturn

__all__ = [
    "EngineBusy",
    "EngineClosed",
    "EngineDied",
    "GenerationStopped",
    "GenerationTimeout",
    "raise_preserving_context",
]


class GenerationStopped(Exception):
    """Raised in the worker thread, out of ``emit()`` or ``put()``, when its stream was stopped.

    It unwinds a producer that does not ask whether it should stop. A producer may clean up and let
    it pass: coming out of a stopped producer it is the normal end, and no consumer ever sees it.
    """


class GenerationTimeout(TimeoutError):
    """Raised from a stream whose generation took too long, after the text that it had made."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the generation took too long: {phase}")
        self.phase: str = phase  #: ``queued``, ``first_token``, ``between_tokens`` or ``total``

    def __reduce__(self) -> tuple[type[GenerationTimeout], tuple[str]]:
        return type(self), (self.phase,)


class EngineBusy(Exception):
    """Raised at the entry of a stream's block: as many wait for the engine as may wait."""

    def __init__(self, waiting: int | None, retry_after: float | None = None) -> None:
        said = "try again later" if waiting is None else f"{waiting} requests are waiting"
        super().__init__(f"the engine is busy: {said}")
        self.waiting: int | None = (
            waiting  #: how many requests wait; None where a server does not tell
        )
        #: seconds until another try may help: a server's word, or an estimate of how long all who
        #: wait will take, as requests go lately; None where neither is known
        self.retry_after: float | None = retry_after

    def __reduce__(self) -> tuple[type[EngineBusy], tuple[int | None, float | None]]:
        return type(self), (self.waiting, self.retry_after)


class EngineClosed(Exception):
    """Raised by each open stream when its engine's block is left, and by each new one after that.

    An open stream raises it after the text that had been made.
    """

    def __init__(self) -> None:
        super().__init__("the engine has been closed")


class EngineDied(Exception):
    """Raised by each open stream when its engine's thread has died, and by each new one after that.

    An open stream raises it after the text that had been made. Its cause is what the thread died
    of.
    """

    def __init__(self) -> None:
        super().__init__("the engine has died")


def raise_preserving_context(exc: BaseException) -> NoReturn:
    """Raise *exc* without making what is being handled right now its context."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context
