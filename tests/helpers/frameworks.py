"""Applications and libraries that are too large for the other tests, and have a session of nox."""

from __future__ import annotations

import os

import pytest

__all__ = ["skip_without"]

# Set in that session: there the tests must not be skipped.
REQUIRE = "ANYSTREAMER_REQUIRE_FRAMEWORKS"


def skip_without(*missing: str) -> None:
    """Skip the test that runs now, because these are not installed here."""
    reason = f"needs {', '.join(missing)}: nox -s night_with_frameworks"
    if os.environ.get(REQUIRE):
        pytest.fail(f"{reason}, and {REQUIRE} is set", pytrace=False)
    pytest.skip(reason)
