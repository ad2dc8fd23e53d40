"""With continuous batching each request chooses its tokens as it asks, with log-probabilities."""

from __future__ import annotations

from contextlib import suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anyio import create_task_group
from transformers import ContinuousBatchingConfig, TopKLogitsWarper

from anystreamer import Regex, TextChunk, open_engine
from anystreamer._engine.cb_config import Settings
from anystreamer._engine.cb_open import open_manager
from anystreamer._engine.cb_processors import RequestProcessors
from anystreamer._engine.cb_sampling import choose_for_each
from anystreamer.demo import load_demo

from ..helpers.tiny_models import new_llama, tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread_for_the_model")]

PROMPT = "An increasing sequence: one,"
LOGPROBS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 3.0, "top_k": 0},
    {"do_sample": True, "temperature": 2.0, "top_p": 0.8},
    {"stop": " six"},
    {"response_format": {"type": "array", "items": {"type": "integer"}}},
]

demo = cache(load_demo)


async def chunks_of(engine: Any, **kwargs: Any) -> tuple[Any, list[TextChunk]]:
    async with engine.stream_text(PROMPT, **{"max_new_tokens": 30, **kwargs}) as stream:
        chunks = [chunk async for chunk in stream]
        if stream.textless_end is not None:
            chunks.append(stream.textless_end)
        return stream, chunks


def logprobs_of(token_ids: list[int]) -> list[float]:
    """Of these tokens after the prompt, in one pass of the model."""
    model, tokenizer = demo()
    prompt = tokenizer(PROMPT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
    rows = logits.log_softmax(-1)
    return [float(row[token_id]) for row, token_id in zip(rows, token_ids, strict=True)]


async def test_logprobs_are_those_of_the_model_whatever_chooses_among_them() -> None:
    """Before temperature, top-k, top-p and masks, as without batching."""
    found: list[Any] = []
    async with open_engine(*demo(), batching="continuous") as engine:

        async def ask(kwargs: dict[str, Any]) -> None:
            found.append((kwargs, *await chunks_of(engine, logprobs=True, **kwargs)))

        async with create_task_group() as tasks:  # in one batch with those that want none
            for kwargs in LOGPROBS:
                tasks.start_soon(ask, kwargs)
            _, plain = await chunks_of(engine)
    assert all((chunk.logprobs, chunk.top_logprobs) == (None, None) for chunk in plain)
    for kwargs, stream, chunks in found:
        logprobs = [each for chunk in chunks for each in chunk.logprobs or ()]
        ids = [each for chunk in chunks for each in chunk.token_ids]
        assert len(logprobs) == len(ids) > 1
        assert ids == stream.token_ids
        assert logprobs == pytest.approx(logprobs_of(ids), abs=1e-3), kwargs
        assert all(top == () for chunk in chunks for top in chunk.top_logprobs or ())


async def test_logprobs_are_those_of_an_engine_without_batching() -> None:
    found = []
    for batching in ("none", "continuous"):
        async with open_engine(*demo(), batching=batching) as engine:
            stream, chunks = await chunks_of(engine, logprobs=True, stop=" six")
            found.append((stream.token_ids, [each for c in chunks for each in c.logprobs or ()]))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)


async def test_the_random_generator_of_the_process_is_left_alone() -> None:
    """A `generate()` with a seed, in another thread, draws from it."""
    async with open_engine(*demo(), batching="continuous") as engine:
        before = torch.get_rng_state()
        await chunks_of(engine)
        stream, _ = await chunks_of(engine, do_sample=True, temperature=3.0)
        other, _ = await chunks_of(engine, do_sample=True, temperature=3.0)
        assert torch.equal(before, torch.get_rng_state())
    assert stream.token_ids != other.token_ids


async def test_samples_follow_the_seed_of_the_process_when_the_engine_opens() -> None:
    found = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            async with open_engine(*demo(), batching="continuous") as engine:
                stream, _ = await chunks_of(engine, do_sample=True, temperature=3.0)
                found.append(stream.token_ids)
    assert found[0] == found[1] != found[2]


# What generate() refuses, and what it cannot draw a token from.
REFUSED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": "hot"},
    {"top_p": -0.1},
    {"top_k": -1},
    {"top_k": 2.5},
]
OVERFLOWING: list[dict[str, Any]] = [
    {"temperature": float("inf"), "response_format": Regex("[a-f ]{5,50}")},
    {"frequency_penalty": 1e39},
    {"repetition_penalty": 1e-40},
    {"logit_bias": {5: 1e38}, "temperature": 1e-3},
]


@pytest.mark.parametrize("batching", ["continuous", "auto"])
async def test_settings_that_nothing_can_be_drawn_with_fail_no_other_request(batching: Any) -> None:
    async with open_engine(*demo(), batching=batching) as engine:
        expected, _ = await chunks_of(engine)
        for kwargs in REFUSED:
            with pytest.raises(ValueError, match=r"temperature|top_p|top_k|convert"):
                engine.stream_text(PROMPT, do_sample=True, **kwargs)
        beside: list[Any] = []

        async def overflow(kwargs: dict[str, Any]) -> None:
            with suppress(RuntimeError):  # its scores are not numbers any more
                await chunks_of(engine, do_sample=True, **kwargs)

        async def ask() -> None:
            beside.append((await chunks_of(engine))[0])

        async with create_task_group() as tasks:
            for kwargs in OVERFLOWING:
                tasks.start_soon(overflow, kwargs)
                tasks.start_soon(ask)
        assert [each.token_ids for each in beside] == [expected.token_ids] * len(OVERFLOWING)


async def test_at_almost_no_temperature_the_likeliest_token_is_drawn() -> None:
    async with open_engine(*demo(), batching="continuous") as engine:
        expected, _ = await chunks_of(engine)
        for temperature in (1e-5, 1e-20, 1e-40, 1e-46):
            cold, _ = await chunks_of(engine, do_sample=True, temperature=temperature)
            assert cold.token_ids == expected.token_ids


PENALTIES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"frequency_penalty": 0.01, "repetition_penalty": 1.0},
    {"presence_penalty": 0.05, "frequency_penalty": -0.04},
    {"logit_bias": {40: 0.2}, "repetition_penalty": 1.5, "presence_penalty": 0.2},
    {"repetition_penalty": 1.3, "response_format": Regex("[a-f ]{5,50}")},
]
WITH_LOGPROBS = {"logprobs": True, "max_new_tokens": 40}


def found_in(stream: Any, chunks: list[TextChunk]) -> tuple[list[int], list[float]]:
    return stream.token_ids, [each for chunk in chunks for each in chunk.logprobs or ()]


async def test_penalties_and_biases_are_those_of_generate_in_one_batch() -> None:
    """Those of the model's generation config too: it is for whoever asks for nothing else."""
    model = new_llama()
    model.generation_config.repetition_penalty = 1.1
    alone: list[Any] = []
    async with open_engine(model, tokenizer(), batching="none") as engine:
        for kwargs in PENALTIES:
            alone.append(found_in(*await chunks_of(engine, **WITH_LOGPROBS, **kwargs)))
    together: list[Any] = [None] * len(PENALTIES)
    async with open_engine(model, tokenizer(), batching="auto") as engine:

        async def ask(number: int, kwargs: dict[str, Any]) -> None:
            together[number] = found_in(*await chunks_of(engine, **WITH_LOGPROBS, **kwargs))
            assert not engine.statistics().running_alone

        async with create_task_group() as tasks:
            for number, kwargs in enumerate(PENALTIES):
                tasks.start_soon(ask, number, kwargs)
    assert len({tuple(ids) for ids, _ in alone}) == len(PENALTIES)
    for kwargs, (ids, logprobs), found in zip(PENALTIES, alone, together, strict=True):
        assert found[0] == ids, kwargs
        assert found[1] == pytest.approx(logprobs, abs=1e-4), kwargs


def test_one_that_had_to_make_way_keeps_the_ids_of_its_answer() -> None:
    """The manager then has a new state of it, whose prompt ends with the answer so far."""
    seen = []

    def keep(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.tolist()[0])
        return scores

    processors = RequestProcessors([keep])
    for prompt, made in ([1, 2], []), ([1, 2], [3]), ([1, 2, 3, 4], []), ([1, 2, 3, 4], [5]):
        processors.take(SimpleNamespace(initial_tokens=prompt, generated_tokens=made))
        processors.process(torch.zeros(1, 9))
    assert seen == [[1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]]


async def test_a_penalty_that_is_not_valid_fails_its_own_request_only() -> None:
    async with open_engine(*demo(), batching="continuous") as engine:
        with pytest.raises(ValueError, match="penalty"):
            await chunks_of(engine, repetition_penalty=-1.0)
        with pytest.raises(ValueError, match="logit_bias has the id"):
            await chunks_of(engine, logit_bias={10**6: 1.0})
        with pytest.raises(ValueError, match="do not fit into the engine's cache"):
            await chunks_of(engine, max_new_tokens=10**400)
        await chunks_of(engine)


@pytest.mark.parametrize("logprobs", [False, True])
async def test_scores_that_are_no_numbers_fail_their_own_request_only(logprobs: bool) -> None:
    """The model's own can be, in float16. Here a token has an infinite score when it came twice."""
    ends = []

    async with open_engine(*demo(), batching="continuous") as engine:
        _, expected = await chunks_of(engine)

        async def fail() -> None:
            async with engine.stream_text(
                PROMPT,
                do_sample=True,
                frequency_penalty=-3e38,
                logprobs=logprobs,
                max_new_tokens=30,
            ) as stream:
                with pytest.raises(RuntimeError, match="not numbers"):
                    await stream.read()
            ends.append(len(stream.token_ids))

        async def go_on(**kwargs: Any) -> None:
            _, chunks = await chunks_of(engine, **kwargs)
            assert kwargs or "".join(chunks) == "".join(expected)
            ends.append(sum(len(chunk.token_ids) for chunk in chunks))

        async with create_task_group() as tasks:
            tasks.start_soon(go_on)
            tasks.start_soon(fail)
            tasks.start_soon(partial(go_on, do_sample=True))
        assert min(ends) == 2
        await go_on()


async def test_without_sampling_the_largest_score_is_chosen_as_generate_does() -> None:
    async with open_engine(*demo(), batching="continuous") as engine:
        stream, _ = await chunks_of(engine, logit_bias={7: 1e308}, max_new_tokens=3)
    assert stream.token_ids == [7, 7, 7]


def test_where_steps_do_not_run_in_order_the_penalty_of_the_model_is_refused() -> None:
    """When the engine opens; with "auto", the model's requests then run one by one."""
    model = new_llama()
    model.generation_config.repetition_penalty = 1.1
    config = ContinuousBatchingConfig(use_async_batching=True, num_blocks=8)
    opening = open_manager(model, tokenizer(), Settings(2, config), lambda _: None, lambda: False)
    with pytest.raises(ValueError, match=r"repetition_penalty=1.1 .*steps that run"), opening:
        pass
    assert "forward" not in vars(model)


@pytest.mark.parametrize("other", [1, 2], ids=["all greedy", "beside one that samples"])
def test_of_equally_likely_tokens_the_first_is_chosen_as_generate_does(other: int) -> None:
    """In bfloat16 two are often equal. transformers' own processor keeps both, and draws one."""
    processors = [_top_k()]
    choose_for_each(SimpleNamespace(logit_processor=SimpleNamespace(logits_processor=processors)))
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 1.0, 5.0, 4.0]])
    kept = processors[0](scores, torch.tensor([1, other, 0], dtype=torch.int32))
    assert (kept[0] > -torch.inf).nonzero()[:, 0].tolist() == [1] == [int(scores[0].argmax())]
    assert (kept[1] > -torch.inf).nonzero()[:, 0].tolist() == ([0] if other == 1 else [0, 2])


def _top_k() -> Any:
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingTopKLogitsWarper,
    )

    return ContinuousBatchingTopKLogitsWarper(TopKLogitsWarper(top_k=1))
