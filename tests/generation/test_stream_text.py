"""`stream_text`: the text, the tokens, and what is known at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anyio import EndOfStream, create_task_group

from ..helpers.llama_streams import ENDLESS, PROMPT, collect, says, stream_llama
from ..helpers.model_calls import Gate
from ..helpers.tiny_models import (
    EOS,
    MARK,
    Say,
    decoded,
    generated,
    ids_of,
    llama,
    seeded,
    steps_of,
)

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("skip_special_tokens", [True, False])
async def test_text_is_what_the_tokenizer_decodes(skip_special_tokens: bool) -> None:
    text = "Grüße, 東京 👩‍👧!"
    say = says(text, MARK, " end", EOS)
    chunks, stream = await collect(stream_llama(**say, skip_special_tokens=skip_special_tokens))
    expected = text + " end" if skip_special_tokens else text + "<mark> end<eos>"
    assert stream.text == expected
    assert stream.text == decoded(stream.token_ids, skip_special_tokens=skip_special_tokens)
    assert "".join(chunks) == stream.text


async def test_greedy_text_is_the_same_as_from_generate() -> None:
    expected = generated(llama(), PROMPT, max_new_tokens=40)
    _, stream = await collect(stream_llama(max_new_tokens=40))
    assert stream.token_ids == expected
    assert stream.text == decoded(expected)


async def test_sampled_text_is_the_same_as_from_generate() -> None:
    """A seed that is set in the worker thread, by `worker_context`, makes it the same."""
    kwargs: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 30}
    with seeded(7):
        expected = generated(llama(), PROMPT, **kwargs)
    _, stream = await collect(stream_llama(**kwargs, worker_context=lambda: seeded(7)))
    assert stream.token_ids == expected


async def test_read_returns_everything() -> None:
    async with stream_llama(**says("One. Two.")) as stream:
        assert await stream.read() == "One. Two."
        assert await stream.read() == ""
        assert stream.text == "One. Two."


async def test_read_after_some_iteration_returns_the_rest() -> None:
    gate = Gate()
    with steps_of(llama(), {6: gate}):
        async with stream_llama(**says("One. Two.")) as stream:
            async for _ in stream:
                if stream.text == "One. ":
                    break
            gate.open()
            assert await stream.read() == "Two."
            assert stream.text == "One. Two."


async def test_read_of_a_text_without_text_is_empty() -> None:
    async with stream_llama(**says(EOS)) as stream:
        assert await stream.read() == ""
    assert (stream.text, stream.token_ids) == ("", [EOS])
    assert stream.usage.completion_tokens == 1


async def test_output_is_what_generate_returned() -> None:
    _, stream = await collect(stream_llama(max_new_tokens=5))
    assert torch.is_tensor(stream.output)
    assert stream.output[0].tolist() == stream.prompt_token_ids + stream.token_ids
    kwargs: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
    _, stream = await collect(stream_llama(max_new_tokens=5, **kwargs))
    assert stream.output.sequences[0].tolist() == stream.prompt_token_ids + stream.token_ids
    assert len(stream.output.scores) == 5


async def test_output_of_a_stopped_generation_is_what_it_made() -> None:
    with steps_of(llama(), {4: lambda: stream.stop()}):
        async with stream_llama(**ENDLESS) as stream:
            await stream.read()
    assert stream.output[0].tolist() == stream.prompt_token_ids + stream.token_ids


async def test_results_are_set_before_the_end_is_seen() -> None:
    gate = Gate()
    with steps_of(llama(), {3: gate}):
        async with stream_llama(**says("abc")) as stream:
            await stream.receive()

            def known() -> list[Any]:
                return [stream.finish_reason, stream.usage, stream.timing, stream.output]

            assert known() == [None] * 4
            assert stream.stop_string is None
            gate.open()
            with pytest.raises(EndOfStream):
                while True:
                    await stream.receive()
            assert None not in known()
            end = known()
    assert known()[:3] == end[:3]
    usage, timing = stream.usage, stream.timing
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids_of(PROMPT)), 3)
    assert usage.computed_tokens == 3
    assert 0 <= timing.queued <= timing.first_token <= timing.total


async def test_usage_counts_computed_and_delivered_tokens() -> None:
    gate = Gate()
    async with create_task_group() as tasks:
        with steps_of(llama(), {4: gate}):
            async with stream_llama(**ENDLESS, logits_processor=[Say("abcdef")]) as stream:
                while len(stream.token_ids) < 3:
                    await stream.receive()
                await gate.reached()
                tasks.start_soon(gate.open_when_blocked)
    assert stream.usage.completion_tokens == 3
    assert stream.usage.computed_tokens in (4, 5)
    assert stream.text == "abc"
