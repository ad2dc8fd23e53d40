"""The exceptions of anystreamer, and how those of other code are passed on unchanged."""

from __future__ import annotations

import logging
import traceback
from typing import NoReturn

from anyio import EndOfStream

__all__ = [
    "EngineBusy",
    "EngineClosed",
    "EngineDied",
    "GenerationStopped",
    "GenerationTimeout",
    "PromptTooLong",
    "add_note",
    "describe",
    "is_kind",
    "raise_preserving_context",
    "wrap_control_flow_exception",
]

logger = logging.getLogger("anystreamer")


class GenerationStopped(Exception):
    """Raised in the worker thread, by ``emit()`` or ``put()``, when its stream was stopped.

    It ends a producer that does not ask whether it should stop. A producer can clean up and let it
    pass: from a stopped producer it is the normal end, and a consumer never sees it.
    """


class GenerationTimeout(TimeoutError):
    """Raised from a stream whose generation took too long, after the text that it had made."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the generation took too long: {phase}")
        self.phase: str = phase  #: ``queued``, ``first_token``, ``between_tokens`` or ``total``

    def __reduce__(self) -> tuple[type[GenerationTimeout], tuple[str]]:
        return type(self), (self.phase,)


class EngineBusy(Exception):
    """Raised at the entry of a stream's block: the engine's queue is full."""

    def __init__(self, waiting: int | None, retry_after: float | None = None) -> None:
        detail = "try again later" if waiting is None else f"{waiting} requests are waiting"
        super().__init__(f"the engine is busy: {detail}")
        #: how many requests wait; None where a server does not report it
        self.waiting: int | None = waiting
        #: seconds until another try can succeed: what a server answered, or an estimate from how
        #: long requests have taken lately; None where neither is known
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

    An open stream raises it after the text that had been made. Its cause is the exception that
    ended the thread.
    """

    def __init__(self) -> None:
        super().__init__("the engine has died")


class PromptTooLong(ValueError):
    """Raised at the entry of a stream's block: the model has no space left for an answer."""

    def __init__(
        self, prompt_tokens: int, context_length: int, is_lower_bound: bool = False
    ) -> None:
        at_least = "at least " if is_lower_bound else ""
        super().__init__(
            f"the model takes {context_length} tokens in all; the prompt has "
            f"{at_least}{prompt_tokens}"
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.is_lower_bound = is_lower_bound  # only the beginning of the prompt was counted

    def __reduce__(self) -> tuple[type[PromptTooLong], tuple[int, int, bool]]:
        return type(self), (self.prompt_tokens, self.context_length, self.is_lower_bound)


# -- exceptions of other people's code: their classes can refuse whatever Python lets them refuse

_CONTEXT = vars(BaseException)["__context__"]


def raise_preserving_context(exc: BaseException) -> NoReturn:
    """Raise *exc* without making what is being handled right now its context."""
    context = _CONTEXT.__get__(exc)
    try:
        raise exc
    finally:
        _CONTEXT.__set__(exc, context)
        del exc, context


def is_kind(
    exc: BaseException | None, kind: type[BaseException] | tuple[type[BaseException], ...]
) -> bool:
    """Whether *exc* is of this kind, as ``except`` decides it.

    ``isinstance`` can fail, because it also asks the exception for its ``__class__``.
    """
    return issubclass(type(exc), kind)


def describe(exc: BaseException) -> str:
    """Return the type and the message, as at the end of a traceback. Never fails."""
    for show in (traceback.format_exception_only, lambda exc: [f"{type(exc).__qualname__}: {exc}"]):
        try:
            return "".join(show(exc)).strip()
        except KeyboardInterrupt:
            raise
        except BaseException:
            continue
    return type(exc).__qualname__


def add_note(exc: BaseException, note: str) -> None:
    """Add a note to *exc*. Never fails: a note that the exception refuses goes to the log."""
    try:
        exc.add_note(note)
    except KeyboardInterrupt:
        raise
    except BaseException:
        logger.warning("%s", note)


def wrap_control_flow_exception(
    exc: BaseException, cancellation: type[BaseException]
) -> BaseException:
    """Return what to raise in a consumer in place of an exception of a worker thread.

    A consumer would take some for the end of its stream, or for its own cancellation: these become
    the cause of a RuntimeError. All others are returned unchanged.
    """
    signals = (StopIteration, StopAsyncIteration, GeneratorExit, EndOfStream, cancellation)
    if not is_kind(exc, signals):
        return exc
    error = RuntimeError(
        f"the worker thread raised {type(exc).__qualname__}, which cannot be raised here: it would "
        "be taken for the end of the stream or for a cancellation; see the cause of this error"
    )
    error.__cause__ = exc
    return error
