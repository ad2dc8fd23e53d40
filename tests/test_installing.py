"""The error for a package that is not installed."""

from __future__ import annotations

import copy
import pickle

import pytest

from anystreamer._installing import NotInstalled, to_install


@pytest.mark.parametrize("name", ["PIL", None])
def test_the_error_can_be_sent_to_another_process(name: str | None) -> None:
    """As the errors of streams can: a replica or a process pool raises it in its caller."""
    error = NotInstalled("pictures need Pillow", "media", name)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is NotInstalled
        assert str(other) == f"pictures need Pillow: {to_install('media')}"
        assert other.name == name
