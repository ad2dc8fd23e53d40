"""The log, and a guard around all that only reports: its failure must not change what happens.

Handlers, formatters, tracers and exporters are code of the application. So is the ``repr`` of an
exception that they show.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from types import TracebackType

__all__ = ["SafeLogger", "reporting"]


_TRACEBACK = vars(BaseException)["__traceback__"]


class _Reporting:
    """A block in which an exception is printed, as `logging` does it, and goes no further."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool:
        if exc_type is None or issubclass(exc_type, KeyboardInterrupt):
            return False
        if logging.raiseExceptions:  # with which applications turn this off
            try:
                traceback.print_exception(exc_type, exc, exc_traceback)
            except KeyboardInterrupt:
                raise
            except BaseException:  # the exception cannot be shown either, or there is no stderr
                pass
        return True


reporting = _Reporting()


class SafeLogger:
    """A logger of the standard library whose calls never fail."""

    def __init__(self, name: str = "anystreamer") -> None:
        self._logger = logging.getLogger(name)

    def is_enabled_for(self, level: int) -> bool:
        """Whether a record of this level would be written."""
        with reporting:
            return self._logger.isEnabledFor(level)
        return False

    def debug(self, message: str, *args: object) -> None:
        self._log(logging.DEBUG, message, *args)

    def info(self, message: str, *, extra: Mapping[str, object]) -> None:
        with reporting:
            self._logger.info(message, extra=extra, stacklevel=2)

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        self._log(logging.WARNING, message, *args, exc_info=exc_info)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        self._log(logging.ERROR, message, *args, exc_info=exc_info)

    def _log(
        self, level: int, message: str, *args: object, exc_info: BaseException | None = None
    ) -> None:
        with reporting:
            shown = None
            if exc_info is not None:  # not by the attribute: its class can refuse that
                shown = (type(exc_info), exc_info, _TRACEBACK.__get__(exc_info))
            self._logger.log(level, message, *args, exc_info=shown, stacklevel=3)
