"""What every test of the bridge is held to."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def asyncio_complains_of_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No "Task exception was never retrieved", no "Task was destroyed but it is pending"."""
    yield
    gc.collect(1)  # conftest.py does the rest
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    errors = [r.getMessage() for r in records if r.name == "asyncio" and r.levelname == "ERROR"]
    assert not errors
