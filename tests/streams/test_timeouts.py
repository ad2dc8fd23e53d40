"""``timeout=``: each phase of a generation has its deadline, kept where the model runs."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from anystreamer import FinishReason, GenerationTimeout, Timeouts, stream_text
from anystreamer._streams.timeouts import Deadlines, queue_deadline
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.inside import state_of
from ..helpers.scripted import PATIENCE, DeadlineClock, until

ENDLESS = ["word "] * 3_000


def opened(model: ScriptedModel, **kwargs: Any) -> Any:
    return stream_text(model, model.tokenizer, "hi", **kwargs)


async def test_total_stops_the_model_and_delivers_what_it_has_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, gate = DeadlineClock(monkeypatch), Gate()
    model = ScriptedModel([*["word "] * 3, gate, *ENDLESS])
    with pytest.raises(GenerationTimeout) as caught:
        async with opened(model, timeout=1e6) as stream:
            await gate.reached()
            clock.pass_all()
            gate.open()
            await stream.read()
    assert caught.value.phase == "total"
    assert isinstance(caught.value, TimeoutError)
    assert stream.finish_reason is FinishReason.TIMEOUT
    assert model.steps == 4
    assert stream.text == "word " * model.steps
    assert stream.usage.completion_tokens == stream.usage.computed_tokens == model.steps
    assert stream.output is not None
    assert not model.is_generating


async def test_a_prefill_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, gate = DeadlineClock(monkeypatch), Gate()
    model = ScriptedModel([gate, *ENDLESS])
    with pytest.raises(GenerationTimeout) as caught:
        async with opened(model, timeout=Timeouts(first_token=1e6)) as stream:
            await gate.reached()
            clock.pass_all()
            gate.open()
            await stream.read()
    assert caught.value.phase == "first_token"
    assert model.steps == 1  # criteria are asked after a step
    assert stream.text == "word "


async def test_a_step_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, gate = DeadlineClock(monkeypatch), Gate()
    model = ScriptedModel(["a", "b", gate, "c", "d"])
    with pytest.raises(GenerationTimeout) as caught:
        async with opened(model, timeout=Timeouts(between_tokens=1e6)) as stream:
            await gate.reached()
            clock.pass_all()
            gate.open()
            await stream.read()
    assert caught.value.phase == "between_tokens"
    assert stream.text == "abc"


async def test_a_turn_that_does_not_come_in_time() -> None:
    """No step is made, and the one that had the turn is left alone."""
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with opened(model) as first:
        await gate.reached()
        with pytest.raises(GenerationTimeout) as caught:
            async with opened(model, timeout=Timeouts(queued=0.01)) as second:
                await second.read()
        assert caught.value.phase == "queued"
        assert second.finish_reason is FinishReason.TIMEOUT
        assert second.usage.computed_tokens == 0
        gate.open()
        assert await first.read() == "a"
    assert len(model.calls) == 1


async def test_total_goes_on_while_the_turn_is_awaited() -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with opened(model) as first:
        await gate.reached()
        with pytest.raises(GenerationTimeout) as caught:
            async with opened(model, timeout=0.01) as second:
                await second.read()
        assert caught.value.phase == "total"
        gate.open()
        await first.read()


class SlowConsumer:
    """Lets an hour pass whenever the worker waits for the loop, or for space in the buffer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits = 0
        for module in (
            "_bridge.delivery",
            "_bridge.producer",
            "_bridge.state",
            "_generation.call",
            "_streams.clock",
        ):
            monkeypatch.setattr(f"anystreamer.{module}.perf_counter", self.now)

    def now(self) -> float:
        return time.perf_counter() + 3600 * self.waits

    def delay(self, func: Callable[..., Any]) -> Callable[..., Any]:
        def delayed(*args: Any) -> Any:
            self.waits += 1
            return func(*args)

        return delayed


async def test_a_slow_consumer_is_not_a_slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is blocked, and the buffer full, for longer than a step can take."""
    consumer, gate = SlowConsumer(monkeypatch), Gate()
    model = ScriptedModel([gate, *["a"] * 5])
    timeouts = Timeouts(first_token=600.0, between_tokens=600.0)
    async with opened(model, timeout=timeouts, max_buffer_size=1) as stream:
        await gate.reached()
        state = state_of(stream)
        state.publish = consumer.delay(state.publish)
        state.space_available.wait = consumer.delay(state.space_available.wait)
        gate.open()
        await until(lambda: consumer.waits > 3)
        assert await stream.read() == "a" * 5
    assert stream.finish_reason is FinishReason.EOS


async def test_the_models_own_end_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is late in the step that ends it, and the consumer is given all of it."""
    clock, gate = DeadlineClock(monkeypatch), Gate()
    model = ScriptedModel(["a", gate])
    async with opened(model, timeout=Timeouts(between_tokens=1e6)) as stream:
        await gate.reached()
        clock.pass_all()
        gate.open()
        assert await stream.read() == "a"
    assert stream.finish_reason is FinishReason.EOS


async def test_it_composes_with_a_deadline_of_the_callers() -> None:
    model = ScriptedModel(ENDLESS, delay=0.01)
    with pytest.raises(TimeoutError) as caught, anyio.fail_after(PATIENCE) as scope:
        async with opened(model, timeout=PATIENCE) as stream:
            await stream.receive()
            scope.deadline = anyio.current_time()
            await stream.read()
    assert not isinstance(caught.value, GenerationTimeout)
    assert stream.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        ("1", TypeError),
        (True, TypeError),
        (0, ValueError),
        (-1.0, ValueError),
        (float("nan"), ValueError),
    ],
)
def test_what_is_no_timeout_is_refused_at_once(timeout: Any, error: type[Exception]) -> None:
    model = ScriptedModel([])
    with pytest.raises(error, match="timeout"):
        opened(model, timeout=timeout)


def test_each_phase_takes_a_number_of_seconds() -> None:
    with pytest.raises(TypeError, match="first_token"):
        Timeouts(first_token="soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queued"):
        Timeouts(queued=0)


def test_the_error_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(GenerationTimeout("queued")))
    assert error.phase == "queued"
    assert "queued" in str(error)


def test_a_deadline_looks_at_the_models_own_clock_but_for_the_total() -> None:
    deadlines = Deadlines(Timeouts(first_token=1.0, between_tokens=0.5, total=10.0), 100.0, 0.0)
    assert not deadlines.check(105.0, 0.9)
    deadlines.token_made(0.9)
    assert not deadlines.check(109.0, 1.3)
    assert deadlines.check(109.0, 1.4)
    assert deadlines.expired_phase == "between_tokens"
    deadlines.token_made(1.4)
    assert deadlines.check(109.0, 1.4)  # once late, always late
    assert Deadlines(Timeouts(total=1.0), 100.0, 0.0).check(101.0, 0.0)


def test_who_waits_for_a_turn_is_told_what_passes_first() -> None:
    assert queue_deadline(Timeouts(queued=2.0, total=3.0), 0.5) == (2.0, "queued")
    assert queue_deadline(Timeouts(queued=2.0, total=2.0), 0.5) == (1.5, "total")
    assert queue_deadline(Timeouts(), 0.5)[0] == float("inf")
