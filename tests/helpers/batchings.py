"""The kinds of engine in this process, as parameters of a test: without the one that is missing."""

from __future__ import annotations

import pytest
import transformers

__all__ = ["BATCHINGS"]

_has_manager = hasattr(getattr(transformers, "ContinuousBatchingConfig", None), "page_size")

BATCHINGS = [
    "none",
    pytest.param(
        "continuous",
        marks=pytest.mark.skipif(not _has_manager, reason="this transformers is too old for it"),
    ),
]
