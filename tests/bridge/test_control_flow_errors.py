"""Exceptions that steer a loop or a task, raised by a tokenizer in a worker thread.

A consumer would take them for a cancellation, and be given a stream that never began.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sniffio
from anyio import EndOfStream, fail_after

from anystreamer import open_engine, stream_text
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PATIENCE

SIGNALS: list[type[BaseException]] = [
    asyncio.CancelledError,
    StopIteration,
    StopAsyncIteration,
    EndOfStream,
    GeneratorExit,
]


class Failing(ScriptedModel):
    """A model whose tokenizer raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(["a"])

        class Tokenizer(type(self.tokenizer)):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                raise error

        self.tokenizer.__class__ = Tokenizer


@pytest.mark.parametrize("in_an_engine", [False, True])
@pytest.mark.parametrize("signal", SIGNALS)
async def test_from_the_encoding_they_are_the_cause_of_an_error(
    signal: type[BaseException], in_an_engine: bool
) -> None:
    if signal is asyncio.CancelledError and sniffio.current_async_library() != "asyncio":
        pytest.skip("on trio it is an exception like any other")
    error = signal()
    model = Failing(error)
    with pytest.raises(RuntimeError, match=f"raised {signal.__name__}") as caught:
        with fail_after(PATIENCE):
            if in_an_engine:
                async with open_engine(model, model.tokenizer) as engine:
                    async with engine.stream_text("hi"):
                        pass
            else:
                async with stream_text(model, model.tokenizer, "hi"):
                    pass
    assert caught.value.__cause__ is error
    assert not model.calls
