"""Assisted decoding with the drafts of a model that has another tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import ENDLESS, finished
from ..helpers.tiny_models import (
    drafting,
    steps_of,
)
from ..helpers.word_models import ALPHABET, new_word_llama, new_word_tokenizer

pytestmark = pytest.mark.torch


@cache
def letters() -> Any:
    return new_word_tokenizer()


@cache
def speaker() -> Any:
    """A model that says letters only: bytes that are no text get lost between two tokenizers."""
    model = new_word_llama(letters())
    said = set(letters().encode("abcdefghijklmnopqrstuvwxyz,. "))
    model.lm_head.weight.data[[each for each in range(len(letters())) if each not in said]] = 0
    return model


def new_drafter() -> tuple[Any, Any]:
    """A model that drafts what `speaker` says, with a vocabulary of its own; and its tokenizer."""
    own = new_word_tokenizer("zzz", "qqq")
    model = new_word_llama(own)
    model.load_state_dict(
        {
            name: value if name.startswith("model.layers") else model.state_dict()[name]
            for name, value in speaker().state_dict().items()
        }
    )
    kept = len(ALPHABET)
    for mine, its in [
        (model.get_input_embeddings(), speaker().get_input_embeddings()),
        (model.lm_head, speaker().lm_head),
    ]:
        mine.weight.data.zero_()
        mine.weight.data[:kept] = its.weight.data[:kept]
    return drafting(model), own


TALK = "one two three"


def drafted() -> dict[str, Any]:
    model, own = new_drafter()
    return {"assistant_model": model, "assistant_tokenizer": own}


def stream_drafted(**kwargs: Any) -> Any:
    return stream_text(speaker(), letters(), TALK, **drafted(), **kwargs)


def talk(**kwargs: Any) -> list[int]:
    """The new tokens that `generate()` makes without us."""
    inputs = letters()(TALK, return_tensors="pt")
    ids: list[int] = speaker().generate(**inputs, **kwargs)[0, len(TALK) :].tolist()
    return ids


async def test_drafts_in_another_vocabulary_change_nothing_but_the_number_of_steps() -> None:
    expected = talk(max_new_tokens=30)
    with steps_of(speaker()) as steps:
        stream = await finished(stream_drafted(max_new_tokens=30))
    assert stream.token_ids == expected == stream.output[0, len(TALK) :].tolist()
    assert stream.text == letters().decode(expected)
    assert stream.prompt_token_ids == letters().encode(TALK)
    assert steps.count < stream.usage.computed_tokens == 30  # or no draft was any good
    assert stream.finish_reason is FinishReason.LENGTH


async def test_drafts_in_another_vocabulary_when_sampling() -> None:
    """In another way: the drafter's probabilities are translated, in an order that is random."""
    with steps_of(speaker()) as steps:
        stream = await finished(stream_drafted(do_sample=True, max_new_tokens=40))
    assert stream.token_ids == stream.output[0, len(TALK) :].tolist()
    assert stream.text == letters().decode(stream.token_ids, skip_special_tokens=True)
    assert steps.count < len(stream.token_ids)


async def test_a_stop_string_and_a_stop_among_drafts_in_another_vocabulary() -> None:
    said = letters().decode(talk(max_new_tokens=30))
    stop = said[8:11]
    stream = await finished(stream_drafted(stop=stop, **ENDLESS))
    assert (stream.text, stream.stop_string) == (said[: said.index(stop)], stop)
    assert stream.token_ids == stream.output[0, len(TALK) :].tolist()
    assert len(stream.token_ids) <= said.index(stop) + len(stop) + 4
    with steps_of(speaker(), {3: lambda: stream.stop()}) as steps:
        async with stream_drafted(**ENDLESS) as stream:
            await stream.read()
    assert steps.count == 3
    assert stream.finish_reason is FinishReason.STOPPED
    assert stream.token_ids == stream.output[0, len(TALK) :].tolist()
    assert said.startswith(stream.text)


async def test_what_generate_refuses_of_another_tokenizer_arrives() -> None:
    """It sees from the vocabularies whether there is another."""
    model, _ = new_drafter()
    with steps_of(speaker()) as steps:
        with pytest.raises(ValueError, match="assistant_tokenizer"):
            await finished(
                stream_text(speaker(), letters(), TALK, assistant_model=model, max_new_tokens=3)
            )
        with pytest.raises(ValueError, match="assistant_tokenizer"):
            await finished(
                stream_text(
                    speaker(),
                    letters(),
                    TALK,
                    assistant_model=speaker(),
                    assistant_tokenizer=letters(),
                    max_new_tokens=3,
                )
            )
    assert steps.count == 0
