"""What the tests of generate() share: a warm torch, and the calls of a model."""

from __future__ import annotations

import gc

import pytest

from .model_calls import Calls


@pytest.fixture(scope="module", autouse=True)
def torch_is_loaded_completely(request: pytest.FixtureRequest) -> None:
    """Load all of torch before the tests, so that no test's garbage collection visits it."""
    if request.node.get_closest_marker("torch"):
        from . import tiny_models  # imports torch

        tiny_models.load_all_of_torch()
        gc.collect()
        gc.freeze()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls of `llama().generate()`. Tell them apart by an argument ``call=``."""
    from .tiny_models import llama

    calls = Calls()
    monkeypatch.setattr(llama(), "generate", calls.around(llama().generate))
    return calls
