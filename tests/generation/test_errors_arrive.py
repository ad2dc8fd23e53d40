"""Promise 4: what generate() raises arrives as the same object, after the text before it."""

from __future__ import annotations

from typing import Any

import pytest
from anyio import CancelScope, create_task_group, fail_after, from_thread
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import ENDLESS, PROMPT, inputs_of, raiser, says, stream_llama
from ..helpers.model_calls import Gate
from ..helpers.tiny_models import MARK, Say, decoded, ids_of, llama, steps_of
from ..helpers.ways_out import BodyError

pytestmark = pytest.mark.torch


async def test_an_error_before_the_first_token() -> None:
    error = RuntimeError("no memory")
    error.__cause__ = cause = OSError("device")
    with steps_of(llama(), {1: raiser(error)}):
        async with stream_llama(**ENDLESS) as stream:
            with pytest.raises(RuntimeError) as caught:
                await stream.receive()
            assert caught.value is error
            assert error.__cause__ is cause
            assert (stream.text, stream.finish_reason) == ("", FinishReason.ERROR)
            assert stream.timing.first_token is None


async def test_an_error_in_the_middle_comes_after_the_text_before_it() -> None:
    """What was held back is part of that text: half a character, the start of a stop string."""
    error = KeyError("weights")
    say = Say("né", *ids_of("東")[:2])
    with steps_of(llama(), {6: raiser(error)}):
        async with stream_llama(**ENDLESS, logits_processor=[say]) as stream:
            with pytest.raises(KeyError) as caught:
                await stream.read()
            assert caught.value is error
            assert stream.text == decoded(say.ids) == "né\ufffd"
            assert stream.token_ids == say.ids
    error = KeyError("weights")
    with steps_of(llama(), {4: raiser(error)}):
        async with stream_llama(**ENDLESS, logits_processor=[Say("abc")], stop="bcd") as stream:
            with pytest.raises(KeyError):
                await stream.read()
            assert stream.text == "abc"


async def test_an_error_that_is_not_read_is_raised_at_the_end_of_the_block() -> None:
    error = RuntimeError("broken")
    with steps_of(llama(), {2: raiser(error)}):
        with pytest.raises(RuntimeError) as caught:
            async with stream_llama(**ENDLESS) as stream:
                with fail_after(30):
                    while "ended" not in repr(stream):
                        await checkpoint()
    assert caught.value is error
    assert stream.finish_reason is FinishReason.ERROR


async def test_an_error_in_the_step_of_a_cancellation_wins() -> None:
    error = RuntimeError("broken")

    def cancel_and_raise() -> None:
        from_thread.run_sync(scope.cancel)
        raise error

    with steps_of(llama(), {3: cancel_and_raise}):
        with CancelScope() as scope:
            with pytest.raises(RuntimeError) as caught:
                async with stream_llama(**ENDLESS) as stream:
                    await stream.read()
    assert caught.value is error
    assert stream.finish_reason is FinishReason.ERROR


async def test_an_error_in_the_step_of_a_stop_wins() -> None:
    error = RuntimeError("broken")

    def stop_and_raise() -> None:
        stream.stop()
        raise error

    with steps_of(llama(), {3: stop_and_raise}):
        async with stream_llama(**ENDLESS) as stream:
            with pytest.raises(RuntimeError) as caught:
                await stream.read()
    assert caught.value is error
    assert stream.finish_reason is FinishReason.ERROR


async def test_of_two_errors_the_bodys_wins_with_a_note_of_the_workers() -> None:
    gate = Gate()

    def wait_and_raise() -> None:
        gate()
        raise RuntimeError("the worker's")

    body = BodyError("the body's")
    async with create_task_group() as tasks:
        with steps_of(llama(), {2: wait_and_raise}), pytest.raises(BodyError) as caught:
            async with stream_llama(**ENDLESS):
                await gate.reached()
                tasks.start_soon(gate.open_when_blocked)
                raise body
        assert caught.value is body
        assert "the worker's" in "".join(body.__notes__)


async def test_an_argument_that_generate_refuses_raises_its_error() -> None:
    with steps_of(llama()) as steps:
        async with stream_llama(no_such_argument=1) as stream:
            with pytest.raises(ValueError, match="no_such_argument"):
                await stream.read()
        async with stream_llama(max_new_tokens=0) as stream:
            with pytest.raises(ValueError, match="max_new_tokens"):
                await stream.read()
    assert steps.count == 0


@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria"])
async def test_errors_of_the_callers_own_parts_arrive(where: str) -> None:
    error = ZeroDivisionError()

    def fail(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if input_ids.shape[1] == len(PROMPT) + 2:
            raise error
        return scores if where == "logits_processor" else False

    async with stream_llama(**ENDLESS, **{where: [fail]}) as stream:
        with pytest.raises(ZeroDivisionError) as caught:
            await stream.read()
        assert caught.value is error


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_errors_of_the_tokenizer_arrive(stop: str | tuple[()]) -> None:
    """It decodes in the middle of `generate()`."""
    error = UnicodeError("cannot decode")

    class Broken:
        def decode(self, token_ids: Any, **kwargs: Any) -> str:
            if MARK in token_ids:
                raise error
            return decoded(token_ids, **kwargs)

    say = says("ab", MARK, "c")
    async with stream_text(llama(), Broken(), inputs_of(PROMPT), stop=stop, **say) as stream:
        with pytest.raises(UnicodeError) as caught:
            await stream.read()
        assert caught.value is error
        assert stream.text == "ab"
        assert stream.finish_reason is FinishReason.ERROR
