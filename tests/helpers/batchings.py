"""The kinds of engine in this process, as parameters of a test: without the one that is missing."""

from __future__ import annotations

import pytest

try:
    import transformers
except ImportError:  # no test that uses these runs then
    transformers = None  # type: ignore[assignment]

__all__ = ["BATCHINGS"]

_has_manager = hasattr(getattr(transformers, "ContinuousBatchingConfig", None), "page_size")

BATCHINGS = [
    "none",
    pytest.param(
        "continuous",
        marks=pytest.mark.skipif(not _has_manager, reason="this transformers is too old for it"),
    ),
]
