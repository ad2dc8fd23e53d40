"""What every test of the bridge is held to."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def asyncio_is_quiet(asyncio_complains_of_nothing: None) -> None:
    """All of these tests, not only those that use the fixture."""
