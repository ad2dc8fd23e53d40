"""Assisted decoding: several tokens in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anystreamer import FinishReason

from ..helpers.llama_streams import ENDLESS, collect, says, stream_llama
from ..helpers.tiny_models import EOS, Say, assistant, decoded, generated, ids_of, llama, steps_of

pytestmark = pytest.mark.torch


ASSISTED: dict[str, Callable[[], dict[str, Any]]] = {
    "assistant_model": lambda: {"assistant_model": assistant()},
    "prompt_lookup": lambda: {"prompt_lookup_num_tokens": 4},
}


REPEATED = "one two three one two three one"


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_delivers_several_tokens_at_once(way: str) -> None:
    text = " two three one two"
    kwargs: dict[str, Any] = {**ASSISTED[way](), "logits_processor": [Say(text, EOS)], **ENDLESS}
    with steps_of(llama()) as steps:
        chunks, stream = await collect(stream_llama(REPEATED, **kwargs))
    assert stream.text == "".join(chunks) == text
    assert stream.token_ids == [*ids_of(text), EOS]
    assert steps.count < stream.usage.computed_tokens == len(stream.token_ids)
    assert stream.finish_reason is FinishReason.EOS


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_makes_the_same_tokens_as_plain_decoding(way: str) -> None:
    expected = generated(llama(), REPEATED, max_new_tokens=30)
    _, stream = await collect(stream_llama(REPEATED, max_new_tokens=30, **ASSISTED[way]()))
    assert stream.token_ids == expected


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_ends_at_a_stop_string(way: str) -> None:
    """Tokens made in the same step come after it: they are delivered, and have no text."""
    kwargs: dict[str, Any] = {
        **ASSISTED[way](),
        **ENDLESS,
        "logits_processor": [Say(" two three one two")],
    }
    _, stream = await collect(stream_llama(REPEATED, stop=["ee", "o o"], **kwargs))
    assert (stream.text, stream.stop_string) == (" two thr", "ee")
    assert stream.finish_reason is FinishReason.STOP_STRING
    made = len(" two three")
    assert made <= stream.usage.computed_tokens <= made + 4
    assert stream.token_ids == stream.output[0, len(REPEATED) :].tolist()


@pytest.mark.parametrize("way", ASSISTED)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
async def test_assisted_decoding_ends_at_an_eos(way: str, skip_special_tokens: bool) -> None:
    kwargs: dict[str, Any] = {
        **ASSISTED[way](),
        **ENDLESS,
        "logits_processor": [Say(" two", EOS, "x")],
    }
    context = stream_llama(REPEATED, **kwargs, skip_special_tokens=skip_special_tokens)
    _, stream = await collect(context)
    assert stream.finish_reason is FinishReason.EOS
    assert stream.token_ids == [*ids_of(" two"), EOS]


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_stops_within_a_step(way: str) -> None:
    with steps_of(llama(), {2: lambda: stream.stop()}) as steps:
        async with stream_llama(REPEATED, **ASSISTED[way](), **ENDLESS) as stream:
            await stream.read()
    assert steps.count == 2
    assert stream.token_ids == stream.output[0, len(REPEATED) :].tolist()
    assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.parametrize("way", ASSISTED)
async def test_a_stop_keeps_what_was_held_back(way: str) -> None:
    """A step can end with an incomplete character, or with the beginning of a stop string."""
    text = " twó thrêe ónê twó"
    every_end = [character + "\0" for character in set(text)]  # always holds the last one back
    for step in (1, 2):
        with steps_of(llama(), {step: lambda: stream.stop()}):
            kwargs: dict[str, Any] = {"logits_processor": [Say(text)], "stop": every_end, **ENDLESS}
            async with stream_llama(text, **ASSISTED[way](), **kwargs) as stream:
                await stream.read()
        made = stream.output[0, len(ids_of(text)) :].tolist()
        assert stream.token_ids == made
        assert stream.text == decoded(made)
        assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.parametrize("way", ASSISTED)
async def test_a_stop_in_the_step_of_an_eos_of_several_tokens_is_an_eos(way: str) -> None:
    with steps_of(llama(), {1: lambda: stream.stop()}):
        kwargs: dict[str, Any] = {"logits_processor": [Say(" ", EOS)], **ENDLESS}
        async with stream_llama(REPEATED, **ASSISTED[way](), **kwargs) as stream:
            await stream.read()
    if stream.output[0, -1] == EOS:  # where the draft had it
        assert stream.finish_reason is FinishReason.EOS
    assert stream.token_ids == stream.output[0, len(REPEATED) :].tolist()


async def test_criteria_called_with_drafts_do_not_turn_them_into_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Releases of transformers up to 5.0 at least ask the criteria before they check the drafts."""
    generate = type(llama())._assisted_decoding

    def asking(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        drafts = torch.cat([input_ids, torch.tensor([ids_of("WRONG")])], dim=1)
        kwargs["stopping_criteria"](drafts, None)
        return generate(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(llama()), "_assisted_decoding", asking)
    kwargs: dict[str, Any] = {**ASSISTED["prompt_lookup"](), **says(" two three")}
    _, stream = await collect(stream_llama(REPEATED, stop="zz", **kwargs))
    assert stream.text == " two three"
