"""The kinds of engine in this process, as parameters of a test. A kind can be missing here."""

from __future__ import annotations

import pytest

try:
    import transformers
except ImportError:  # tests that use these are skipped then
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
