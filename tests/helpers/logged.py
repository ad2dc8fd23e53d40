"""Reads what the library has logged, without the records of other libraries and of event loops."""

from __future__ import annotations

import logging

import pytest

__all__ = ["logged_by_us"]


def logged_by_us(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The messages of the logger ``anystreamer``, from *level* on.

    On a busy machine, asyncio warns about slow callbacks, too.
    """
    ours = [each for each in caplog.records if each.name == "anystreamer"]
    return [each.getMessage() for each in ours if each.levelno >= level]
