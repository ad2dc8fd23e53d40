"""The exceptions of anystreamer, and how those of other code are passed on unchanged."""

from __future__ import annotations

import traceback
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, NoReturn, TypeGuard, TypeVar

from anyio import EndOfStream

from ._reporting import SafeLogger

__all__ = [
    "EngineBusy",
    "EngineClosed",
    "EngineDied",
    "GenerationStopped",
    "GenerationTimeout",
    "PreservingContext",
    "PromptTooLong",
    "add_note",
    "describe",
    "is_kind",
    "message_of",
    "raise_preserving_context",
    "reason_of",
    "traceback_of",
    "wrap_control_flow_exception",
]

logger = SafeLogger()


class GenerationStopped(BaseException):
    """Raised in the worker thread, by ``emit()`` or ``put()``, when its stream was stopped.

    It ends a producer that does not call ``should_stop()``. A producer can clean up, but must not
    catch it: for a stopped producer it is the normal end, and the consumer never sees it.

    Like a cancellation, it is not an `Exception`: libraries catch these around their callbacks, and
    would continue.
    """


class GenerationTimeout(TimeoutError):
    """Raised from a stream whose generation took too long, after the text that it had made.

    A stream of a worker raises it if its turn has not come in time.
    """

    def __init__(self, phase: str, task: str = "generation") -> None:
        super().__init__(f"the {task} took too long: {phase}")
        self.phase: str = phase  #: ``queued``, ``first_token``, ``between_tokens`` or ``total``
        self._task = task

    def __reduce__(self) -> tuple[type[GenerationTimeout], tuple[str, str]]:
        return type(self), (self.phase, self._task)


class EngineBusy(Exception):
    """Raised at the entry of a stream's block: the queue of the engine or worker is full."""

    def __init__(
        self, waiting: int | None, retry_after: float | None = None, owner: str = "engine"
    ) -> None:
        detail = "try again later" if waiting is None else f"{waiting} requests are waiting"
        super().__init__(f"the {owner} is busy: {detail}")
        #: how many wait; None where a server does not report it
        self.waiting: int | None = waiting
        #: seconds until another try can succeed: what a server answered, or an estimate from how
        #: long turns have taken lately; None where neither is known
        self.retry_after: float | None = retry_after
        self._owner = owner

    def __reduce__(self) -> tuple[type[EngineBusy], tuple[int | None, float | None, str]]:
        return type(self), (self.waiting, self.retry_after, self._owner)


class EngineClosed(Exception):
    """Raised by each open stream when the block of its engine or worker is left.

    An open stream raises it after its last items. New streams then raise it at once.
    """

    def __init__(self, owner: str = "engine") -> None:
        super().__init__(f"the {owner} has been closed")
        self._owner = owner

    def __reduce__(self) -> tuple[type[EngineClosed], tuple[str]]:
        return type(self), (self._owner,)


class EngineDied(Exception):
    """Raised by each open stream when a thread of its engine or worker has died.

    An open stream raises it after its last items. New streams then raise it at once. Its cause is
    the exception that ended the thread.
    """

    def __init__(self, owner: str = "engine") -> None:
        super().__init__(f"the {owner} has died")
        self._owner = owner

    def __reduce__(self) -> tuple[type[EngineDied], tuple[str]]:
        return type(self), (self._owner,)


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

_CAUSE = vars(BaseException)["__cause__"]
_CONTEXT = vars(BaseException)["__context__"]
_TRACEBACK = vars(BaseException)["__traceback__"]

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")


def raise_preserving_context(exc: BaseException) -> NoReturn:
    """Raise *exc* without making what is being handled right now its context."""
    context = _CONTEXT.__get__(exc)
    try:
        raise exc
    finally:
        _CONTEXT.__set__(exc, context)
        del exc, context


class PreservingContext(Generic[T]):
    """Enters a context manager of other code, and does not let it replace an exception.

    Context managers of contextlib set the traceback of an exception that passes through. If its
    class refuses that, they would raise the refusal in its place.
    """

    def __init__(self, context: AbstractContextManager[T]) -> None:
        self._context = context

    def __enter__(self) -> T:
        return self._context.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return self._context.__exit__(exc_type, exc, exc_traceback)
        except BaseException as raised:
            if exc is not None and type(raised) is _refusal_of_traceback(exc):
                return False
            raise


def _refusal_of_traceback(exc: BaseException) -> type[BaseException] | None:
    """Return the type of what *exc* raises when its traceback is set; None if it can be set."""
    try:
        exc.__traceback__ = traceback_of(exc)
    except BaseException as refusal:
        return type(refusal)
    return None


def is_kind(exc: BaseException | None, kind: type[E] | tuple[type[E], ...]) -> TypeGuard[E]:
    """Whether *exc* is of this kind, as ``except`` decides it.

    ``isinstance`` can fail, because it also asks the exception for its ``__class__``.
    """
    return issubclass(type(exc), kind)


def message_of(exc: BaseException) -> str:
    """Return the message; "" if there is none, or if it cannot be shown. Never fails."""
    try:
        return str(exc)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def traceback_of(exc: BaseException) -> TracebackType | None:
    """Return the traceback, without a call of the class of *exc*, which can refuse it."""
    traceback: TracebackType | None = _TRACEBACK.__get__(exc)
    return traceback


def reason_of(exc: BaseException) -> BaseException | None:
    """Return what *exc* was raised from, or else while it was handled."""
    cause: BaseException | None = _CAUSE.__get__(exc)
    context: BaseException | None = _CONTEXT.__get__(exc)
    return context if cause is None else cause


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
