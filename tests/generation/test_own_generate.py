"""A generate() of a model's own that calls the streamer, and does less than transformers' does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from transformers import EosTokenCriteria

from anystreamer import FinishReason, stream_text

from ..helpers.scripted import PATIENCE
from ..helpers.tiny_models import Say, generated, ids_of, llama, steps_of, tokenizer

pytestmark = pytest.mark.torch

MANY = 200


class Wrapped:
    """A model around `llama`."""

    training = False

    def __init__(self) -> None:
        self._model = llama()
        self.config = self._model.config
        self.generation_config = self._model.generation_config
        self.device = self._model.device


class WithoutCriteria(Wrapped):
    def generate(self, *, streamer: Any, stopping_criteria: Any, **kwargs: Any) -> Any:
        return self._model.generate(streamer=streamer, **kwargs)


class WithoutIds(Wrapped):
    def __init__(self, output: object) -> None:
        super().__init__()
        self._output = output

    def generate(self, **kwargs: Any) -> object:
        self._model.generate(**kwargs)
        return self._output


class LeavesThread(Wrapped):
    """Its generate() returns while a thread of it goes on to put a token."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: threading.Thread | None = None
        self.goes_on = threading.Event()
        self.errors: list[BaseException] = []

    def generate(self, *, input_ids: Any, streamer: Any, **kwargs: Any) -> None:
        streamer.put(input_ids)
        streamer.put(ids_of("a"))
        self.thread = threading.Thread(target=self._put_late, args=(streamer.put,))
        self.thread.start()

    def _put_late(self, put: Callable[[Any], None]) -> None:
        assert self.goes_on.wait(PATIENCE)
        try:
            put(ids_of("b"))
        except BaseException as exc:
            self.errors.append(exc)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_token_of_a_thread_that_outlives_the_stream_is_dropped(backend: str) -> None:
    """It does not call into an event loop that has ended."""
    model = LeavesThread()

    async def main() -> str:
        async with stream_text(model, tokenizer(), "hi") as stream:
            return await stream.read()

    text = anyio.run(main, backend=backend)
    model.goes_on.set()
    assert model.thread is not None
    model.thread.join()
    assert (text, model.errors) == ("a", [])


async def test_a_stop_ends_a_model_that_drops_the_criteria() -> None:
    with steps_of(llama(), {5: lambda: stream.stop()}) as steps:
        async with stream_text(WithoutCriteria(), tokenizer(), "hi", max_new_tokens=MANY) as stream:
            await stream.read()
    assert steps.count <= 6
    assert stream.token_ids == generated(llama(), "hi", max_new_tokens=steps.count)
    assert (stream.finish_reason, stream.output) == (FinishReason.STOPPED, None)


async def test_leaving_the_block_ends_a_model_that_drops_the_criteria() -> None:
    with steps_of(llama()) as steps:
        async with stream_text(WithoutCriteria(), tokenizer(), "hi", max_new_tokens=MANY) as stream:
            await stream.receive()
    assert steps.count < MANY
    assert stream.finish_reason is FinishReason.CANCELLED


async def test_a_stop_string_ends_a_model_that_drops_the_criteria() -> None:
    processors = [Say("one two three")]
    with steps_of(llama()) as steps:
        async with stream_text(
            WithoutCriteria(),
            tokenizer(),
            "hi",
            stop="tw",
            logits_processor=processors,
            max_new_tokens=MANY,
        ) as stream:
            assert await stream.read() == "one "
    assert steps.count == len(ids_of("one tw"))
    assert stream.finish_reason is FinishReason.STOP_STRING


@pytest.mark.parametrize("output", [None, {"text": "one"}, (), ["one"]], ids=repr)
async def test_a_criterion_of_transformers_beside_a_result_without_ids(output: object) -> None:
    end = ids_of("t")[0]
    async with stream_text(
        WithoutIds(output),
        tokenizer(),
        "hi",
        logits_processor=[Say("one two three")],
        stopping_criteria=[EosTokenCriteria(end)],
        max_new_tokens=MANY,
    ) as stream:
        assert await stream.read() == "one t"
    assert (stream.finish_reason, stream.output) == (FinishReason.CRITERIA, output)
