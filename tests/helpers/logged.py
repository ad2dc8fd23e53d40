"""What the library has logged, without what other libraries and a busy event loop log."""

from __future__ import annotations

import logging

import pytest

__all__ = ["logged_by_us"]


def logged_by_us(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The messages of the library, from *level* on.

    asyncio warns of callbacks that are slow, as they are beside other work.
    """
    ours = [each for each in caplog.records if each.name == "anystreamer"]
    return [each.getMessage() for each in ours if each.levelno >= level]
