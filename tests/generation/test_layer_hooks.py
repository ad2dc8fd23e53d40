"""``cancel_within="layer"``: a step stops between two layers, and nobody else notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import torch
from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread

from anystreamer import (
    FinishReason,
    GenerationTimeout,
    SupportsGenerate,
    Timeouts,
    stream_batch,
    stream_text,
)
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PATIENCE, DeadlineClock
from ..helpers.tiny_models import ids_of, new_llama, t5, tokenizer

pytestmark = pytest.mark.torch

LAYERS = 4


class Halt:
    """Holds a model at the end of one run of one of its layers, and counts the runs of them all."""

    def __init__(self, layers: Any, at: int, step: int = 0) -> None:
        self.ran = [0] * len(layers)
        self._step = step
        self._reached = threading.Event()
        self._go = threading.Event()
        self._handles = [
            layer.register_forward_hook(self._hook(index, index == at))
            for index, layer in enumerate(layers)
        ]

    def _hook(self, index: int, holds: bool) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> None:
            self.ran[index] += 1
            if holds and self.ran[index] == self._step + 1:
                self._reached.set()
                assert self._go.wait(PATIENCE)

        return hook

    async def reached(self) -> None:
        assert await to_thread.run_sync(self._reached.wait, PATIENCE)

    def go(self) -> None:
        self._go.set()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def model() -> Iterator[Any]:
    model = new_llama(layers=LAYERS)
    yield model
    assert hooks(model) == 0


def hooks(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def opened(model: Any, **kwargs: Any) -> Any:
    kwargs = {"max_new_tokens": 8, "cancel_within": "layer", **kwargs}
    return stream_text(model, tokenizer(), "tell me", **kwargs)


async def test_a_cancelled_prefill_runs_no_further_layer(model: Any) -> None:
    halt = Halt(model.model.layers, at=1)
    with CancelScope() as scope:
        async with opened(model) as stream:
            await halt.reached()
            scope.cancel()
            halt.go()
            await stream.read()
    assert halt.ran == [1, 1, 0, 0]
    assert stream.finish_reason is FinishReason.CANCELLED
    assert stream.usage.computed_tokens == 0
    assert stream.output is None
    halt.remove()


async def test_within_a_step_a_cancelled_prefill_goes_on(model: Any) -> None:
    """The default, beside which the test above says something."""
    halt = Halt(model.model.layers, at=1)
    with CancelScope() as scope:
        async with opened(model, cancel_within="step") as stream:
            assert hooks(model) == 0
            await halt.reached()
            assert hooks(model) == 0
            scope.cancel()
            halt.go()
            await stream.read()
    assert halt.ran == [1, 1, 1, 1]
    halt.remove()


async def test_stop_keeps_what_was_made_before_the_step_that_is_cut(model: Any) -> None:
    async with opened(model, cancel_within="step") as stream:
        whole = await stream.read()
    halt = Halt(model.model.layers, at=2, step=3)
    async with opened(model) as stream:
        await halt.reached()
        stream.stop()
        halt.go()
        text = await stream.read()
    assert halt.ran == [4, 4, 4, 3]
    assert stream.finish_reason is FinishReason.STOPPED
    assert len(stream.token_ids) == stream.usage.computed_tokens == 3
    assert text == tokenizer().decode(stream.token_ids)
    assert whole.startswith(text.removesuffix("\N{REPLACEMENT CHARACTER}"))
    halt.remove()


async def test_a_deadline_cuts_a_prefill(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    halt = Halt(model.model.layers, at=0)
    clock = DeadlineClock(monkeypatch)
    with pytest.raises(GenerationTimeout) as caught:
        async with opened(model, timeout=Timeouts(first_token=1e6)) as stream:
            await halt.reached()
            clock.pass_all()
            halt.go()
            await stream.read()
    assert caught.value.phase == "first_token"
    assert halt.ran == [1, 0, 0, 0]
    assert stream.finish_reason is FinishReason.TIMEOUT
    halt.remove()


async def test_the_text_of_one_that_is_left_alone_is_the_same(model: Any) -> None:
    async with opened(model, cancel_within="step") as stream:
        expected = await stream.read()
    async with opened(model) as stream:
        assert await stream.read() == expected
    assert stream.finish_reason is FinishReason.LENGTH


async def test_who_uses_the_model_in_another_thread_goes_on(model: Any) -> None:
    """Both are inside of the model, both hooks on its layers, when one of them is cancelled."""
    async with opened(model) as stream:
        expected = await stream.read()
    for other in ("step", "layer"):
        halt = Halt(model.model.layers, at=1)
        limiter = CapacityLimiter(2)
        async with (
            opened(model, limiter=limiter, cancel_within=other) as unharmed,
            opened(model, limiter=limiter) as cancelled,
            create_task_group() as tg,
        ):
            await halt.reached()
            tg.start_soon(cancelled.aclose)
            await anyio.wait_all_tasks_blocked()
            halt.go()
            assert await unharmed.read() == expected
        assert unharmed.finish_reason is FinishReason.LENGTH
        assert cancelled.usage.computed_tokens < 8
        halt.remove()


async def test_it_is_over_when_generate_raises(model: Any) -> None:
    def fail(*args: Any) -> None:
        raise OSError("no memory")

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(OSError, match="no memory"):
        async with opened(model) as stream:
            await stream.read()
    handle.remove()
    assert hooks(model) == 0


async def test_an_assistant_is_stopped_too(model: Any) -> None:
    drafter = new_llama(seed=2, layers=2)
    halt = Halt(drafter.model.layers, at=0)
    with CancelScope() as scope:
        async with opened(model, assistant_model=drafter) as stream:
            await halt.reached()
            scope.cancel()
            halt.go()
            await stream.read()
    assert halt.ran == [1, 0]
    assert hooks(drafter) == 0
    halt.remove()


async def test_an_encoder_is_stopped_too() -> None:
    blocks = t5().encoder.block
    halt = Halt([*blocks, *t5().decoder.block], at=len(blocks) - 1)
    with CancelScope() as scope:
        kwargs: dict[str, Any] = {"max_new_tokens": 8, "cancel_within": "layer"}
        async with stream_text(t5(), tokenizer(), "hm", **kwargs) as stream:
            await halt.reached()
            scope.cancel()
            halt.go()
            await stream.read()
    assert sum(halt.ran) == len(blocks)
    assert hooks(t5()) == 0
    halt.remove()


async def test_a_batch_whose_rows_have_ended_keeps_how_they_did(model: Any) -> None:
    async with stream_batch(model, tokenizer(), ["one", "two"], max_new_tokens=1) as stream:
        await stream.read()  # a model's first batch tries it first, which takes steps
    halt = Halt(model.model.layers, at=0, step=4)
    kwargs: dict[str, Any] = {"max_new_tokens": 8, "cancel_within": "layer"}
    async with stream_batch(model, tokenizer(), ["one", "two"], **kwargs) as stream:
        stream.stop(0)
        await halt.reached()
        stream.stop()
        halt.go()
        await stream.read()
    assert halt.ran == [5, 4, 4, 4]
    assert stream.finish_reason == [FinishReason.STOPPED, FinishReason.STOPPED]
    assert [usage.computed_tokens for usage in stream.usage if usage] == [1, 4]
    halt.remove()


def compiled() -> Any:
    return torch.compile(new_llama(), backend="eager")


def compiled_in_place() -> Any:
    model = new_llama()
    model.compile(backend="eager")
    return model


class NoLayers(torch.nn.Linear):
    def generate(self, **kwargs: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("new_model", "kwargs", "said"),
    [
        (new_llama, {"cancel_within": "token"}, "must be 'step' or 'layer', not 'token'"),
        (new_llama, {"cancel_within": None}, "must be 'step' or 'layer', not None"),
        (compiled, {}, "a compiled model"),
        (compiled_in_place, {}, "a compiled model"),
        (new_llama, {"past_key_values": object()}, "past_key_values="),
        (new_llama, {"cache_implementation": "static"}, "disable_compile=True"),
        (new_llama, {"compile_config": object()}, "disable_compile=True"),
        (lambda: ScriptedModel(["a"]), {}, "not a model of transformers"),
        (lambda: NoLayers(1, 1).eval(), {}, "no layers of a known kind"),
    ],
)
def test_what_it_cannot_serve_is_refused(new_model: Any, kwargs: Any, said: str) -> None:
    model: SupportsGenerate = new_model()
    with pytest.raises(ValueError, match=said):
        opened(model, **kwargs)


async def test_a_static_cache_that_is_not_compiled_can_be_cut(model: Any) -> None:
    halt = Halt(model.model.layers, at=0)
    with CancelScope() as scope:
        async with opened(model, cache_implementation="static", disable_compile=True) as stream:
            await halt.reached()
            scope.cancel()
            halt.go()
            await stream.read()
    assert halt.ran == [1, 0, 0, 0]
    halt.remove()


async def test_a_prompt_of_ids_is_cut_as_any_other(model: Any) -> None:
    halt = Halt(model.model.layers, at=0)
    with CancelScope() as scope:
        inputs = {"input_ids": torch.tensor([ids_of("hm")])}
        kwargs: dict[str, Any] = {"max_new_tokens": 8, "cancel_within": "layer"}
        async with stream_text(model, tokenizer(), inputs, **kwargs) as stream:
            await halt.reached()
            scope.cancel()
            halt.go()
            await stream.read()
    assert halt.ran == [1, 0, 0, 0]
    halt.remove()
