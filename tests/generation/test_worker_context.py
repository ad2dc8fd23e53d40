"""`worker_context=`: a context manager around generate(), in its thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from anystreamer import FinishReason

from ..helpers.llama_streams import ENDLESS, collect, raiser, stream_llama
from ..helpers.model_calls import Calls
from ..helpers.tiny_models import llama, steps_of

pytestmark = pytest.mark.torch


async def test_worker_context_is_around_generate_in_the_worker(calls: Calls) -> None:
    """It is entered when the turn has come, and left right after `generate()`."""
    seen: list[Any] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        seen.append(("in", threading.get_ident(), calls.inside))
        yield
        seen.append(("out", threading.get_ident(), calls.inside))

    def look() -> None:
        seen.append(("step", threading.get_ident(), calls.inside))

    with steps_of(llama(), {1: look}):
        await collect(stream_llama(max_new_tokens=1, worker_context=context))
    assert [(name, inside) for name, _, inside in seen] == [("in", 0), ("step", 1), ("out", 0)]
    assert len({thread for _, thread, _ in seen}) == 1
    assert seen[0][1] != threading.get_ident()


async def test_worker_context_is_left_after_a_stop_and_after_an_error() -> None:
    left: list[str] = []

    @contextlib.contextmanager
    def context(name: str) -> Iterator[None]:
        try:
            yield
        finally:
            left.append(name)

    async with stream_llama(**ENDLESS, worker_context=lambda: context("stop")):
        pass
    with pytest.raises(ValueError, match="no_such_thing"):
        await collect(stream_llama(no_such_thing=1, worker_context=lambda: context("error")))
    assert left in (["stop", "error"], ["error"])  # the first can have left before its turn


@pytest.mark.parametrize("when", ["enter", "exit", "call"])
async def test_errors_of_a_worker_context_arrive(when: str) -> None:
    error = RuntimeError(when)

    class Context:
        def __enter__(self) -> None:
            if when == "enter":
                raise error

        def __exit__(self, *exc_info: object) -> None:
            if when == "exit":
                raise error

    def make() -> Any:
        if when == "call":
            raise error
        return Context()

    with steps_of(llama()) as steps:
        async with stream_llama(max_new_tokens=2, worker_context=make) as stream:
            with pytest.raises(RuntimeError) as caught:
                await stream.read()
            assert caught.value is error
            assert stream.finish_reason is FinishReason.ERROR
    assert steps.count == (2 if when == "exit" else 0)


async def test_a_worker_context_that_swallows_an_error_swallows_it() -> None:
    """As `contextlib.suppress` is meant to: the text ends there."""
    with steps_of(llama(), {3: raiser(RuntimeError("broken"))}):
        context = stream_llama(**ENDLESS, worker_context=lambda: contextlib.suppress(RuntimeError))
        async with context as stream:
            await stream.read()
    assert len(stream.token_ids) == 2
    assert stream.output is None
    assert stream.finish_reason is not None
