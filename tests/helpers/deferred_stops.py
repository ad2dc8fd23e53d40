"""A device on which `generate()` learns of a stop one step late, as it does on MPS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

__all__ = ["deferred_stops"]


class DelayedEvent:
    """In place of a device's event: a CPU has none to wait for."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextmanager
def deferred_stops() -> Iterator[None]:
    """Tokens are put a step late, and the step after a stop is computed and undone."""
    from transformers.generation import utils

    if not hasattr(utils, "DeferredStopCheck"):
        pytest.skip("this release of transformers has no deferred stops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *a, **k: True))
        patch.setattr(torch, "Event", DelayedEvent)
        yield
