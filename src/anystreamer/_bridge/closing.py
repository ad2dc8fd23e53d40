"""`Closing`: closes an iterable and its iterator in the thread that has iterated over it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

from .._errors import GenerationStopped, describe
from .._reporting import SafeLogger
from .callables import check_result

__all__ = ["Closing"]

logger = SafeLogger()


class Closing:
    """Calls the ``close()`` of an object at the end of a block, if the object has one.

    What ``close()`` raises goes on, with the block's own exception as its context. Once the stream
    was stopped, it goes to the log: its consumer has left, or will leave, and has done nothing
    wrong. The standard streams of the process are not closed.

    `contextlib.ExitStack` is not used: it sets attributes of an exception that passes through.

    Args:
        obj: to close.
        name: of the producer, for the log.
        was_stopped: whether the stream was stopped.
    """

    def __init__(self, obj: object, name: str, was_stopped: Callable[[], bool]) -> None:
        self._close = getattr(obj, "close", None)
        # Not of *obj*: wrappers of a standard stream can pass on its methods, as click's do.
        if _is_standard_stream(getattr(self._close, "__self__", None)):
            self._close = None
        self._name = name
        self._was_stopped = was_stopped

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        if not callable(self._close):
            return
        try:
            check_result(self._close(), "close()")
        except (KeyboardInterrupt, GenerationStopped):  # the latter ends a producer as usual
            raise
        except BaseException as error:
            if not self._was_stopped():
                raise
            logger.warning(
                "%s was stopped, and its close() failed: %s",
                self._name,
                describe(error),
                exc_info=error,
            )


def _is_standard_stream(obj: object) -> bool:
    return obj is not None and any(obj is each for each in _standard_streams())


def _standard_streams() -> Iterator[object]:
    for stream in (sys.stdin, sys.__stdin__, sys.stdout, sys.__stdout__, sys.stderr):
        yield stream
        with suppress(ValueError):  # detached
            yield (buffer := getattr(stream, "buffer", None))
            yield getattr(buffer, "raw", None)
