"""Devices on which generate() learns of a stop one step late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation import utils

from anystreamer import Choice, FinishReason, stream_batch, stream_text

from ..helpers.deferred_stops import deferred_stops
from ..helpers.llama_streams import ENDLESS, PROMPT, collect, stream_llama
from ..helpers.own_ends import OWN_ENDS
from ..helpers.tiny_models import Say, SayRows, ids_of, llama, steps_of, tokenizer

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def stops_are_deferred() -> Iterator[None]:
    with deferred_stops():
        yield


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize(
    "end", ["eos", "length", "criteria", "transformers' criteria", "stop string"]
)
async def test_a_device_that_stops_a_step_late(end: str, stop: str | tuple[()]) -> None:
    """What is delivered is what `generate()` returns, with or without a look at each step."""
    _, kwargs = OWN_ENDS[end]
    arguments = {"stop": stop} | kwargs()
    _, stream = await collect(stream_llama(**arguments))
    assert stream.finish_reason is OWN_ENDS[end][0]
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()
    assert stream.usage.computed_tokens == 3


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("how", ["setting", "criterion"])
async def test_the_time_on_a_device_that_stops_a_step_late(
    how: str, rows: int, stop: str | tuple[()]
) -> None:
    criterion = MaxTimeCriteria(max_time=900.0)

    def take_time() -> None:
        time.sleep(0.2)
        criterion.initial_timestamp -= 1000

    arguments: dict[str, Any] = {"max_time": 0.1} if how == "setting" else {}
    if how == "criterion":
        arguments["stopping_criteria"] = [criterion]
    prompts = [PROMPT] * rows
    with steps_of(llama(), {3: take_time}):
        async with stream_batch(
            llama(), tokenizer(), prompts, **arguments, **ENDLESS, stop=stop
        ) as stream:
            await stream.read()
    reason = FinishReason.TIME if how == "setting" else FinishReason.CRITERIA
    assert stream.finish_reason == [reason] * rows
    assert stream.token_ids == stream.output[:, len(PROMPT) :].tolist()


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_a_stop_on_a_device_that_stops_a_step_late(stop: str | tuple[()]) -> None:
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**ENDLESS, stop=stop) as stream:
            await stream.read()
    assert steps.count <= 4
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()


class LastIs(StoppingCriteria):
    def __init__(self, letter: str) -> None:
        self.id = ids_of(letter)[0]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] == self.id


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize("how", ["time", "stop"])
async def test_a_criterion_of_a_step_that_is_undone(how: str, stop: str | tuple[()]) -> None:
    """It would end the rows then, by what fills them up. They have ended in the step before."""
    time_criterion = MaxTimeCriteria(max_time=900.0)

    def end_all_in_step_3(input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        if input_ids.shape[1] == len("one") + 3:
            if how == "stop":
                stream.stop()
            else:
                time_criterion.initial_timestamp -= 1000
        return False

    async with stream_batch(
        llama(),
        tokenizer(),
        ["one", "two"],
        logits_processor=[SayRows(ids_of("abcdefgh"), ids_of("ijklmnop"))],
        pad_token_id=ids_of("Z")[0],
        stopping_criteria=[LastIs("Z"), end_all_in_step_3, time_criterion],
        stop=stop,
        **ENDLESS,
    ) as stream:
        await stream.read()
    assert stream.token_ids == [ids_of("abc"), ids_of("ijk")]
    reason = FinishReason.STOPPED if how == "stop" else FinishReason.CRITERIA
    assert stream.finish_reason == [reason, reason]


LATE_STOPS = [{}, {"stop": "never said"}, {"stopping_criteria": [lambda *_, **__: False]}]


@pytest.mark.parametrize("more", LATE_STOPS, ids=["plain", "stop", "criterion"])
@pytest.mark.parametrize("end", ["length", "criterion"])
@pytest.mark.parametrize("rows", [1, 2])
async def test_log_probabilities_are_those_of_their_own_step(
    rows: int, end: str, more: dict[str, Any]
) -> None:
    def in_step_3(input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        return bool(input_ids.shape[1] >= len("one") + 3)

    kwargs: dict[str, Any] = {**more, "max_new_tokens": 3 if end == "length" else 900}
    if end == "criterion":
        kwargs["stopping_criteria"] = [*more.get("stopping_criteria", ()), in_step_3]

    async def logprobs() -> list[list[float]]:
        said: list[list[float]] = [[] for _ in range(rows)]
        async with stream_batch(
            llama(), tokenizer(), ["one", "two"][:rows], logprobs=True, **kwargs
        ) as stream:
            async for chunk in stream:
                said[chunk.row] += chunk.logprobs or []
            for row, end_of_row in enumerate(stream.textless_end):
                said[row] += (end_of_row and end_of_row.logprobs) or []
        assert [len(each) for each in stream.token_ids] == [3] * rows
        return said

    late = await logprobs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *a, **k: False))
        in_time = await logprobs()
    assert late == in_time


@pytest.mark.parametrize("more", LATE_STOPS, ids=["plain", "stop", "criterion"])
@pytest.mark.parametrize("rows", [1, 2])
async def test_a_format_is_followed(rows: int, more: dict[str, Any]) -> None:
    form = Choice(["hello", "help", "yes"])
    async with stream_batch(
        llama(), tokenizer(), ["one", "two"][:rows], response_format=form, **ENDLESS, **more
    ) as stream:
        await stream.read()
    assert all(each in form.options for each in stream.text)
    assert stream.finish_reason == [FinishReason.EOS] * rows
    assert stream.parsed == stream.text


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_the_smaller_of_two_lengths(stop: str | tuple[()]) -> None:
    lengths = [MaxLengthCriteria(len(PROMPT) + 50), MaxLengthCriteria(len(PROMPT) + 3)]
    async with stream_llama(
        logits_processor=[Say("abcdefgh")], stopping_criteria=lengths, stop=stop, **ENDLESS
    ) as stream:
        await stream.read()
    assert stream.text == "abc"
    assert stream.finish_reason is FinishReason.CRITERIA


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_a_stop_string_that_only_tokens_have(stop: str | tuple[()]) -> None:
    """The first token of a text is decoded without its space; `generate()` sees it with it."""
    model, sentencepiece = t5_with_metaspace()
    go = sentencepiece.convert_tokens_to_ids(["\u2581stop", "\u2581go", "\u2581on"])
    async with stream_text(
        model,
        sentencepiece,
        "go",
        logits_processor=[Say(*go)],
        stop_strings=[" stop"],
        stop=stop,
        max_new_tokens=5,
    ) as stream:
        await stream.read()
    assert stream.token_ids == go[:1] == stream.output[0, 1:].tolist()
    assert stream.finish_reason is FinishReason.STOP_STRING


def t5_with_metaspace() -> tuple[Any, Any]:
    words = [
        "<pad>",
        "</s>",
        "\u2581stop",
        "\u2581go",
        "\u2581on",
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    config = T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    model = T5ForConditionalGeneration(config).eval()
    model.generation_config.decoder_start_token_id = 0
    return model, PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>"
    )
