"""`OpenStreams`: the streams of a response, which are closed together, however they end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self, TypeVar

from .._errors import raise_preserving_context, traceback_of

__all__ = ["OpenStreams"]

T = TypeVar("T")


class OpenStreams:
    """Like `contextlib.AsyncExitStack`, for exceptions of any class.

    That one reads and sets attributes of an exception, and a class of exceptions can refuse this.
    """

    def __init__(self) -> None:
        self._contexts: list[AbstractAsyncContextManager[object]] = []

    async def open(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter the block of a stream. It is left at the end of this block."""
        stream = await context.__aenter__()
        self._contexts.append(context)
        return stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool:
        raised = exc
        for context in reversed(self._contexts):
            details = (None, None, None) if raised is None else _details(raised)
            try:
                if await context.__aexit__(*details):
                    raised = None
            except BaseException as new:
                raised = new
        if raised is not None and raised is not exc:
            raise_preserving_context(raised)
        return raised is None


def _details(exc: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    return type(exc), exc, traceback_of(exc)
