"""Fixtures for tests of code that streams: ``pytest_plugins = ["anystreamer.pytest_plugin"]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from . import testing
from .testing import Script, ScriptedModel

__all__ = ["NewScriptedModel", "no_worker_left", "scripted_model"]


class NewScriptedModel(Protocol):
    """The type of the `scripted_model` fixture: it makes models, as `ScriptedModel` itself does."""

    def __call__(
        self, script: Script, *, prefill: float = 0.0, delay: float = 0.0
    ) -> ScriptedModel:
        """Make a model; see `ScriptedModel`."""


@pytest.fixture
def scripted_model() -> Iterator[NewScriptedModel]:
    """Make scripted models, and fail a test that leaves one of them generating."""
    models: list[ScriptedModel] = []

    def new(script: Script, *, prefill: float = 0.0, delay: float = 0.0) -> ScriptedModel:
        models.append(ScriptedModel(script, prefill=prefill, delay=delay))
        return models[-1]

    yield new
    left = [model for model in models if model.is_generating]
    for model in models:  # a thread that waits at one would keep the process alive
        model.open_gates()
    if left:
        pytest.fail(f"{len(left)} scripted model(s) left generating", pytrace=False)


@pytest.fixture
def no_worker_left() -> Iterator[None]:
    """Fail a test that leaves the worker of a stream running or waiting for its turn.

    For all tests of a file: ``pytestmark = pytest.mark.usefixtures("no_worker_left")``. Streams of
    fixtures that are set up before it are not looked at. If the event loop of an ``async def`` test
    ends with it, that can end the worker too: `anystreamer.testing.no_worker_left` in the test
    looks before that.
    """
    watch, failure = testing.no_worker_left(), ""
    watch.__enter__()
    yield
    try:
        watch.__exit__(None, None, None)
    except AssertionError as error:
        failure = str(error)
    if failure:
        pytest.fail(failure, pytrace=False)
